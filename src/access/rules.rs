//! [`Rules`]: all identities, read from TOML.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{Credentials, Grant, Identity, Refusal, Right, Service, token};
use crate::tls::CertificateName;

/// Larger files are refused: every token costs every call a comparison.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Names of identities, in bytes: they stand in messages.
const NAME_BYTES_MAX: usize = 64;
/// What callers without a credential are called.
const ANONYMOUS: &str = "anonymous";

/// Who is known, and what each may do.
#[derive(Clone, Debug)]
pub struct Rules {
    identities: Vec<Arc<Identity>>,
    /// With the position of whose it is.
    tokens: Vec<([u8; 32], usize)>,
    certificates: Vec<(CertificateName, usize)>,
    anonymous: Option<Arc<Identity>>,
    /// Server reflection answers everybody, and not only who is known.
    pub open_reflection: bool,
}

/// All that is wrong with a file, one sentence each. Repeats nothing of what stands where a hash should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRules(pub Vec<String>);

impl fmt::Display for BadRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for BadRules {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    open_reflection: bool,
    #[serde(default)]
    anonymous: Option<AnonymousEntry>,
    #[serde(default)]
    identity: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousEntry {
    grants: Vec<GrantEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    token_sha256: Vec<String>,
    #[serde(default)]
    certificates: Vec<String>,
    #[serde(default)]
    grants: Vec<GrantEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantEntry {
    services: Vec<Service>,
    #[serde(default)]
    prefixes: Vec<String>,
    rights: Vec<Right>,
}

impl Rules {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`BadRules`]: of what is no TOML, or has unknown words, the first thing; otherwise everything.
    pub fn parse(text: &str) -> Result<Self, BadRules> {
        if text.len() > FILE_BYTES_MAX {
            let rule = format!("has {} bytes; at most {FILE_BYTES_MAX} are allowed", text.len());
            return Err(BadRules(vec![rule]));
        }
        let file: File = toml::from_str(text).map_err(|error| BadRules(vec![explain(&error, text)]))?;
        let mut reading = Reading::default();
        let anonymous = file.anonymous.map(|entry| {
            let grants = reading.grants(ANONYMOUS, entry.grants);
            Arc::new(Identity { name: ANONYMOUS.to_owned(), anonymous: true, grants })
        });
        for entry in file.identity {
            reading.identity(entry);
        }
        if !reading.wrong.is_empty() {
            return Err(BadRules(reading.wrong));
        }
        let Reading { identities, tokens, certificates, .. } = reading;
        let open_reflection = file.open_reflection;
        Ok(Self { identities, tokens, certificates, anonymous, open_reflection })
    }

    /// Whose credentials these are. A token counts before a certificate, and a wrong one is not made good by a right
    /// certificate. Of a certificate for several identities the first in the file has it.
    ///
    /// # Errors
    /// [`Refusal`], but never [`Refusal::Denied`].
    pub fn identify(&self, credentials: &Credentials) -> Result<&Arc<Identity>, Refusal> {
        if let Some(hash) = &credentials.token {
            return self.of_token(hash).ok_or(Refusal::UnknownToken);
        }
        let names = &credentials.certificate;
        let mut known = self.certificates.iter();
        if let Some((_, at)) = known.find(|(name, _)| names.contains(name)) {
            return Ok(&self.identities[*at]);
        }
        match (&self.anonymous, names.is_empty()) {
            (Some(anonymous), _) => Ok(anonymous),
            (None, true) => Err(Refusal::NoCredentials),
            (None, false) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                Err(Refusal::UnknownCertificate { names: names.join(", ") })
            }
        }
    }

    /// Looks at all of them, and as long at each, whether it was found or not.
    fn of_token(&self, hash: &[u8; 32]) -> Option<&Arc<Identity>> {
        // Positions from 1, so that 0 is nobody.
        let mut found = 0_u64;
        for (known, at) in &self.tokens {
            let same: Choice = known[..].ct_eq(&hash[..]);
            found.conditional_assign(&(*at as u64 + 1), same);
        }
        let at = usize::try_from(found).ok()?.checked_sub(1)?;
        self.identities.get(at)
    }

    /// How many identities there are, besides that of callers without a credential.
    pub fn count(&self) -> usize {
        self.identities.len()
    }
}

/// Where it is and what, without the line that the parser quotes.
fn explain(error: &toml::de::Error, text: &str) -> String {
    let place = error.span().map(|span| {
        let before = text.get(..span.start).unwrap_or(text);
        format!("line {}: ", before.matches('\n').count() + 1)
    });
    // What was found may be a token where a hash should be; what was asked for stands after it.
    let message = error.message().lines().next().unwrap_or_default();
    let message = match message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    {
        Some((_, expected)) => format!("must be {expected}"),
        None => message.to_owned(),
    };
    format!("{}{message}", place.unwrap_or_default())
}

#[derive(Default)]
struct Reading {
    identities: Vec<Arc<Identity>>,
    tokens: Vec<([u8; 32], usize)>,
    certificates: Vec<(CertificateName, usize)>,
    wrong: Vec<String>,
}

impl Reading {
    fn identity(&mut self, entry: Entry) {
        let (name, at) = (entry.name, self.identities.len());
        let word = |b: u8| b.is_ascii_alphanumeric() || b"-_./@:".contains(&b);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(word) {
            let shown = name.escape_debug();
            self.wrong.push(format!(
                "identity \"{shown}\": name must have from 1 to {NAME_BYTES_MAX} characters out of a-z, A-Z, 0-9 and -_./@:"
            ));
        }
        if name == ANONYMOUS {
            self.wrong.push(format!(
                "identity {name}: this is what callers without a credential are called; use [anonymous]"
            ));
        } else if self.identities.iter().any(|other| other.name == name) {
            self.wrong.push(format!("identity {name}: is there twice"));
        }
        if entry.token_sha256.is_empty() && entry.certificates.is_empty() {
            self.wrong.push(format!(
                "identity {name}: must have token_sha256 or certificates, or nobody can be it"
            ));
        }
        for (position, text) in entry.token_sha256.iter().enumerate() {
            self.token(&name, position, text, at);
        }
        for text in &entry.certificates {
            self.certificate(&name, text, at);
        }
        let grants = self.grants(&name, entry.grants);
        self.identities.push(Arc::new(Identity { name, anonymous: false, grants }));
    }

    fn token(&mut self, name: &str, position: usize, text: &str, at: usize) {
        let Some(hash) = token::parse_hash(text) else {
            self.wrong.push(format!(
                "identity {name}: token_sha256[{position}] must be the SHA-256 of a token, 64 hexadecimal digits, as `majorityd token` prints it"
            ));
            return;
        };
        if self.tokens.iter().any(|(other, _)| *other == hash) {
            self.wrong.push(format!("identity {name}: token_sha256[{position}] is there twice"));
        }
        self.tokens.push((hash, at));
    }

    fn certificate(&mut self, name: &str, text: &str, at: usize) {
        if text.is_empty() || text.contains('*') {
            let shown = text.escape_debug();
            self.wrong.push(format!(
                "identity {name}: certificates has \"{shown}\"; each must be a DNS name or a URI, without *"
            ));
        }
        let certificate = CertificateName::parse(text);
        if self.certificates.iter().any(|(other, _)| *other == certificate) {
            let shown = text.escape_debug();
            self.wrong.push(format!("identity {name}: the certificate name \"{shown}\" is there twice"));
        }
        self.certificates.push((certificate, at));
    }

    fn grants(&mut self, name: &str, entries: Vec<GrantEntry>) -> Vec<Grant> {
        let mut grants = Vec::new();
        for (position, GrantEntry { services, prefixes, rights }) in entries.into_iter().enumerate() {
            let place = format!("{name}: grants[{position}]");
            if services.is_empty() || rights.is_empty() {
                self.wrong.push(format!("{place} must have services and rights"));
            }
            // The cluster has no names.
            if prefixes.is_empty() && services.iter().any(|service| *service != Service::Cluster) {
                self.wrong.push(format!("{place} must have prefixes; [\"\"] is for all names"));
            }
            for right in &rights {
                if !services.is_empty() && !services.iter().any(|service| exists(*service, *right)) {
                    self.wrong.push(format!("{place} has the right {right}, which none of its services has"));
                }
            }
            grants.push(Grant { services, prefixes, rights });
        }
        grants
    }
}

/// Whether any method needs this, or will. Who grants what means nothing has meant something else.
fn exists(service: Service, right: Right) -> bool {
    match (service, right) {
        (_, Right::Read) => true,
        (Service::Cluster, Right::Use | Right::Force) => false,
        // Reserved for what will be done to a cluster.
        (Service::Cluster, Right::Admin) => true,
        (Service::Locks | Service::Queues | Service::Keys, Right::Use) => true,
        (Service::Locks | Service::Queues, Right::Force) => true,
        (Service::Queues, Right::Admin) => true,
        (Service::Keys, Right::Force) | (Service::Locks | Service::Keys, Right::Admin) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Need, Scope};

    fn credentials(token: Option<&str>, names: &[&str]) -> Credentials {
        let certificate = names.iter().map(|name| CertificateName::parse(name)).collect();
        Credentials { token: token.map(token::hash), certificate }
    }

    fn file(more: &str) -> String {
        let hash = |text: &str| token::hash_text(&token::hash(text));
        format!(
            r#"
            [[identity]]
            name = "billing"
            token_sha256 = ["{}", "{}"]
            certificates = ["spiffe://x/billing"]
            grants = [{{ services = ["locks"], prefixes = ["billing/"], rights = ["read", "use"] }}]
            [[identity]]
            name = "ops"
            token_sha256 = ["{}"]
            certificates = ["ops.example", "spiffe://x/ops"]
            grants = [{{ services = ["cluster"], rights = ["read"] }}]
            {more}"#,
            hash("old"),
            hash("new"),
            hash("ops")
        )
    }

    #[test]
    fn credentials_lead_to_their_identity_and_a_token_counts_first() {
        let rules = Rules::parse(&file("")).unwrap();
        let who =
            |token, names: &[&str]| rules.identify(&credentials(token, names)).map(|who| who.name.clone());
        assert_eq!(who(Some("old"), &[]).unwrap(), "billing");
        assert_eq!(who(Some("new"), &[]).unwrap(), "billing");
        assert_eq!(who(Some("ops"), &["spiffe://x/billing"]).unwrap(), "ops");
        assert_eq!(who(None, &["other", "OPS.example"]).unwrap(), "ops");
        assert_eq!(who(None, &["spiffe://x/ops", "spiffe://x/billing"]).unwrap(), "billing");
        assert_eq!(who(Some("nobody's"), &["ops.example"]), Err(Refusal::UnknownToken));
        assert_eq!(who(Some(""), &[]), Err(Refusal::UnknownToken));
        assert_eq!(who(None, &[]), Err(Refusal::NoCredentials));
        let names = "spiffe://X/ops, sub.ops.example".to_owned();
        let refused = who(None, &["spiffe://X/ops", "sub.ops.example"]);
        assert_eq!(refused, Err(Refusal::UnknownCertificate { names }));
        assert_eq!(rules.count(), 2);
    }

    #[test]
    fn callers_without_a_credential_may_what_is_said_and_a_wrong_one_is_still_wrong() {
        let grants = r#"grants = [{ services = ["keys"], prefixes = ["public/"], rights = ["read"] }]"#;
        let rules = Rules::parse(&file(&format!("[anonymous]\n{grants}"))).unwrap();
        let nobody = rules.identify(&credentials(None, &[])).unwrap();
        let read = Need { service: Service::Keys, right: Right::Read };
        assert!(nobody.anonymous && nobody.may(read, Scope::Name("public/a")).is_ok());
        assert!(nobody.may(read, Scope::Name("private")).unwrap_err().to_string().starts_with("anonymous "));
        assert!(rules.identify(&credentials(None, &["unknown.example"])).unwrap().anonymous);
        assert_eq!(rules.identify(&credentials(Some("x"), &[])), Err(Refusal::UnknownToken));
    }

    /// The document shows a file, and what each right is for; both are true.
    #[test]
    fn the_document_has_good_rules_and_every_method_under_its_right() {
        let document = include_str!("../../docs/security.md");
        let blocks = document.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let file = blocks.into_iter().find(|block| block.contains("[[identity]]")).unwrap();
        assert_eq!(Rules::parse(file).unwrap().count(), 1);

        let columns = [Service::Locks, Service::Queues, Service::Keys, Service::Cluster];
        let mut told = Vec::new();
        for right in [Right::Read, Right::Use, Right::Force, Right::Admin] {
            let start = format!("| `{right}` |");
            let row = document.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
            for (service, cell) in columns.into_iter().zip(row.split('|')) {
                let methods = cell.split('`').skip(1).step_by(2);
                told.extend(methods.map(|method| format!("{service} {right} {method}")));
            }
        }
        let needed = crate::access::methods::METHODS.iter().filter_map(|(path, entrance)| match entrance {
            crate::access::methods::Entrance::Needs(Need { service, right }) => {
                Some(format!("{service} {right} {}", path.rsplit('/').next()?))
            }
            _ => None,
        });
        let mut needed: Vec<String> = needed.collect();
        told.sort();
        needed.sort();
        assert_eq!(told, needed);
    }

    #[test]
    fn an_empty_file_lets_nobody_in() {
        let rules = Rules::parse("").unwrap();
        assert_eq!(rules.identify(&credentials(None, &[])), Err(Refusal::NoCredentials));
        assert_eq!(rules.identify(&credentials(Some("x"), &[])), Err(Refusal::UnknownToken));
        assert!(!rules.open_reflection);
    }

    #[test]
    fn everything_wrong_is_told_at_once_and_no_token_is_repeated() {
        let text = r#"
            [[identity]]
            name = "a b"
            token_sha256 = ["mjd_secret"]
            certificates = ["*.example", "x.example"]
            [[identity]]
            name = "anonymous"
            certificates = ["X.example"]
            grants = [{ services = ["locks"], rights = ["admin"] }, { services = [], rights = [] }]
            [[identity]]
            name = "ops"
            [[identity]]
            name = "ops"
            token_sha256 = ["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]
            grants = [{ services = ["cluster"], rights = ["use"] }]
        "#;
        let BadRules(wrong) = Rules::parse(text).unwrap_err();
        for (at, expected) in [
            "\"a b\": name must",
            "a b: token_sha256[0] must be",
            "\"*.example\"",
            "identity anonymous: this is",
            "\"X.example\" is there twice",
            "anonymous: grants[0] must have prefixes",
            "anonymous: grants[0] has the right admin, which none of its",
            "anonymous: grants[1] must have services",
            "ops: must have token_sha256 or",
            "ops: is there twice",
            "ops: token_sha256[1] is there twice",
            "ops: grants[0] has the right use, which none of its",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(wrong[at].contains(expected), "{expected}: {wrong:#?}");
        }
        assert_eq!(wrong.len(), 12, "{wrong:#?}");
        assert!(!format!("{wrong:?}").contains("secret"));
    }

    #[test]
    fn what_is_no_such_file_is_named_by_its_line_and_not_quoted() {
        for (text, line, also) in [
            ("[[identity]]\nname = \"a\"\ntokens = [\"mjd_secret\"]", "line 3: ", "unknown field"),
            ("[[identity]]\nname = \"a\"\ntoken_sha256 = \"mjd_secret\"", "line 3: ", "must be a sequence"),
            ("\n[[identity]\nname = \"mjd_secret\"", "line 2: ", ""),
            ("[[identity]]\nname = \"a\"\ntoken_sha256 = [mjd_secret]", "line 3: ", ""),
            ("open_reflection = \"mjd_secret\"", "line 1: ", "must be a boolean"),
            (
                "[anonymous]\ngrants = [{ services = [\"doors\"], rights = [\"use\"] }]",
                "line 2: ",
                "unknown variant",
            ),
        ] {
            let shown = Rules::parse(text).unwrap_err().to_string();
            assert!(shown.starts_with(line) && shown.contains(also), "{shown}");
            assert!(!shown.contains("secret"), "{shown}");
        }
        let large = " ".repeat(FILE_BYTES_MAX + 1);
        assert!(Rules::parse(&large).unwrap_err().to_string().contains("at most"));
    }
}
