//! Writes the constants of a script into its text.
//!
//! A function in Lua 5.1 captures every local that it uses, each time it is made, by a search among all that are captured
//! already; and a batch makes all functions of the script anew. The names of fields, operations and answers are for
//! people: in the text that a server runs, a number stands where its name stood. The lines stay where they are, so that
//! what an error says of a line is true of the files.

use std::collections::BTreeMap;

/// The text with every `local NAME, … = literal, …` taken out and each such name replaced by what it stands for. Only names
/// in capitals, and only literals: numbers and plain strings. Comments go, too.
pub fn write_in(script: &str) -> String {
    let mut literals = BTreeMap::new();
    let mut text = String::with_capacity(script.len());
    for line in script.lines() {
        let pieces: Vec<_> = pieces(line).collect();
        match declared(line) {
            Some(constants) => literals.extend(constants),
            None => text.extend(pieces.iter().map(|piece| match piece {
                Piece::Word(word) => literals.get(word).copied().unwrap_or(word),
                Piece::Other(other) => other,
            })),
        }
        text.push('\n');
    }
    text
}

/// The names and literals of a line that declares nothing else.
fn declared(line: &str) -> Option<Vec<(&str, &str)>> {
    let (names, literals) = line.strip_prefix("local ")?.split_once(" = ")?;
    let names: Vec<_> = names.split(", ").collect();
    let literals: Vec<_> = literals.split(", ").collect();
    let is_name =
        |name: &&str| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let fit =
        names.len() == literals.len() && names.iter().all(is_name) && literals.iter().all(|l| is_literal(l));
    fit.then(|| names.into_iter().zip(literals).collect())
}

fn is_literal(text: &str) -> bool {
    let number = text.bytes().all(|b| b.is_ascii_digit());
    let string = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    number || string.is_some_and(|inner| !inner.contains(['\'', '\\']))
}

enum Piece<'a> {
    /// A name or a keyword.
    Word(&'a str),
    /// Anything else; a whole string.
    Other(&'a str),
}

/// A line up to its comment. Strings end in the line that they begin in.
fn pieces(line: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let first = rest.chars().next().filter(|_| !rest.starts_with("--"))?;
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = match first {
            '\'' => string_end(rest),
            first if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            first => first.len_utf8(),
        };
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(if is_word(first) { Piece::Word(piece) } else { Piece::Other(piece) })
    })
}

/// Where the string that the text begins with is over.
fn string_end(text: &str) -> usize {
    let mut escaped = true;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\'' if !escaped => return at + 1,
            b'\\' if at > 0 => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_literals_are_replaced() {
        let script = "local A, B_2 = 1, 'two' -- not alone\n\
                      local A, B_2 = 1, 'two'\n\
                      local COMPUTED = f(A)\n\
                      x[A] = { A, B_2, AB, a, 'A', 'it\\'s A', COMPUTED } -- A\n\
                      y = A - 1";
        let expected = "local A, B_2 = 1, 'two' \n\
                        \n\
                        local COMPUTED = f(1)\n\
                        x[1] = { 1, 'two', AB, a, 'A', 'it\\'s A', COMPUTED } \n\
                        y = 1 - 1\n";
        assert_eq!(write_in(script), expected);
    }

    #[test]
    fn what_is_no_list_of_literals_stays() {
        for line in [
            "local A = 1, 2",
            "local A, B = 1",
            "local a = 1",
            "A = 1",
            "local A = 'x' .. 'y'",
            "local A = '\\31'",
        ] {
            assert_eq!(write_in(line), format!("{line}\n"), "{line}");
        }
    }
}
