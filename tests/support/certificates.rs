//! Certificates for tests: authorities that sign, and files that change.
#![allow(dead_code, reason = "every test crate uses another part of it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

/// Who signs.
pub struct Authority {
    /// Its own certificate, in PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Signed {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// One that nobody else trusts.
    pub fn new(name: &str) -> Self {
        let mut asked = CertificateParams::default();
        asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        asked.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = asked.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(asked, key) }
    }

    fn sign(&self, asked: CertificateParams) -> Signed {
        let key = KeyPair::generate().expect("a key");
        let certificate = asked.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Signed { certificate, key: key.serialize_pem() }
    }

    fn asked(&self, names: &[&str], purpose: ExtendedKeyUsagePurpose) -> CertificateParams {
        let (uris, hosts): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains("://"));
        let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
        let mut asked = CertificateParams::new(hosts).expect("good names");
        let uri = |uri: &str| SanType::URI(uri.try_into().expect("a good URI"));
        asked.subject_alt_names.extend(uris.into_iter().map(uri));
        asked.extended_key_usages.push(purpose);
        asked
    }

    /// For a server on this machine.
    pub fn server(&self) -> Signed {
        self.sign(self.asked(&["localhost", "127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// For a server on this machine, until the end of 2020.
    pub fn expired_server(&self) -> Signed {
        let mut asked = self.asked(&["localhost", "127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth);
        (asked.not_before, asked.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 12, 31));
        self.sign(asked)
    }

    /// For a client with these names.
    pub fn client(&self, names: &[&str]) -> Signed {
        self.sign(self.asked(names, ExtendedKeyUsagePurpose::ClientAuth))
    }

    /// The same, for so many seconds from now on.
    pub fn client_for(&self, names: &[&str], seconds: u64) -> Signed {
        let mut asked = self.asked(names, ExtendedKeyUsagePurpose::ClientAuth);
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
        asked.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs() + seconds);
        self.sign(asked)
    }

    /// The same, with a number by which it can be revoked.
    pub fn numbered_client(&self, names: &[&str], number: u64) -> Signed {
        let mut asked = self.asked(names, ExtendedKeyUsagePurpose::ClientAuth);
        asked.serial_number = Some(SerialNumber::from(number));
        self.sign(asked)
    }

    /// A list of revoked certificates, in PEM.
    pub fn revoking(&self, numbers: &[u64]) -> String {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("a list").pem().expect("PEM")
    }

    /// The same, until the end of 2020.
    pub fn expired_client(&self, names: &[&str]) -> Signed {
        let mut asked = self.asked(names, ExtendedKeyUsagePurpose::ClientAuth);
        (asked.not_before, asked.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 12, 31));
        self.sign(asked)
    }
}

impl Signed {
    /// Writes both into a folder; where they are.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate).expect("writes");
        std::fs::write(&key, &self.key).expect("writes");
        (certificate, key)
    }
}
