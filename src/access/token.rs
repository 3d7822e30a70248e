//! Bearer tokens: how they look, and the hash by which they are known.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};

/// What every token starts with, so that people and scanners of source code know one when they see it.
pub const PREFIX: &str = "mjd_";

/// A token of 256 random bits: the prefix and 43 characters out of `A-Z`, `a-z`, `0-9`, `-`, `_` (base64url).
pub fn of(random: [u64; 4]) -> String {
    let bytes = random.map(u64::to_be_bytes).concat();
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// The SHA-256 of a token as text. Any text is a token: only its hash is known.
pub fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

/// As the file of rules has it: 64 hexadecimal digits.
pub fn hash_text(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads what [`hash_text`] writes, in either case. `None` for anything else.
pub fn parse_hash(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_all_its_bits() {
        for random in [[0; 4], [u64::MAX; 4], [0x0123_4567_89ab_cdef, 1, 1 << 63, 0xfedc_ba98_7654_3210]] {
            let token = of(random);
            let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX).unwrap()).unwrap();
            assert_eq!(bytes, random.map(u64::to_be_bytes).concat(), "{token}");
        }
    }

    #[test]
    fn a_hash_is_what_sha256sum_says_and_survives_its_text() {
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_text(&hash("abc")), text);
        assert_eq!(parse_hash(text), Some(hash("abc")));
        assert_eq!(parse_hash(&text.to_uppercase()), Some(hash("abc")));
        for bad in ["", "ab", &text[1..], &format!("{text}0"), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(parse_hash(bad), None, "{bad}");
        }
    }
}
