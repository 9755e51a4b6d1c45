//! Just enough of Rust's lexical structure to tell code from comments, literals and tests.

/// The source with comments, strings and character literals blanked by spaces; lines and byte offsets stay.
pub(crate) fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let word = identifier_len(&bytes[at..]);
        let raw = matches!(&bytes[at..at + word], b"r" | b"br" | b"cr");
        let rest = &bytes[at + word..];
        let skipped = match word {
            0 => skipped_len(rest),
            _ if raw => raw_string_len(rest),
            _ => None,
        };
        at += word;
        match skipped {
            Some(len) => {
                blank(&mut out[at..at + len]);
                at += len;
            }
            None if word == 0 => at += 1,
            None => {}
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `code` (from [`code_only`]) with every item under `#[cfg(test)]` blanked.
pub(crate) fn without_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    let starts = code.match_indices("#[cfg(").filter(|(at, _)| {
        let condition = &code[at + 6..];
        condition.starts_with("test") || condition.starts_with("all(test")
    });
    for (start, _) in starts {
        let len = item_len(&code.as_bytes()[start..]);
        blank(&mut out[start..start + len]);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Line numbers (from 1) where `needle` stands as a whole path or word; `std::{fs, io}` counts as `std::fs` and `std::io`.
pub(crate) fn lines_with(code: &str, needle: &str) -> Vec<usize> {
    let mut offsets: Vec<usize> = code.match_indices(needle).map(|(at, _)| at).filter(|&at| is_whole(code, at, needle.len())).collect();
    if let Some((head, member)) = needle.split_once("::") {
        let group = format!("{head}::{{");
        for (at, _) in code.match_indices(&group) {
            if group_members(&code[at + group.len()..]).contains(&member) {
                offsets.push(at);
            }
        }
    }
    offsets.sort_unstable();
    offsets.into_iter().map(|at| 1 + code[..at].matches('\n').count()).collect()
}

fn blank(bytes: &mut [u8]) {
    bytes.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn identifier_len(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&byte| is_word(byte)).count()
}

fn is_whole(code: &str, at: usize, len: usize) -> bool {
    let bytes = code.as_bytes();
    let starts = at == 0 || !is_word(bytes[at - 1]);
    let ends = bytes.get(at + len).is_none_or(|&byte| !is_word(byte));
    starts && ends
}

/// Length of the comment, string or character literal at the start of `bytes`.
fn skipped_len(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'/', b'/', ..] => Some(bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len())),
        [b'/', b'*', ..] => Some(block_comment_len(bytes)),
        [b'"', ..] => Some(quoted_len(bytes)),
        [b'\'', b'\\', ..] => Some(quoted_len(bytes)),
        [b'\'', first, rest @ ..] => {
            let width = 1 + rest.iter().take_while(|&&byte| *first >= 0x80 && byte & 0xc0 == 0x80).count();
            (bytes.get(1 + width) == Some(&b'\'')).then_some(2 + width)
        }
        _ => None,
    }
}

/// Length of a raw string whose `r` has just been passed.
fn raw_string_len(bytes: &[u8]) -> Option<usize> {
    let hashes = bytes.iter().take_while(|&&byte| byte == b'#').count();
    if bytes.get(hashes) != Some(&b'"') {
        return None;
    }
    let end = [b"\"".as_slice(), &bytes[..hashes]].concat();
    let body = &bytes[hashes + 1..];
    let len = body.windows(end.len()).position(|window| window == end).map_or(body.len(), |at| at + end.len());
    Some(hashes + 1 + len)
}

fn quoted_len(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != bytes[0] {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn block_comment_len(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of the item whose attributes start at `bytes`: to the end of its first block, or to a `;` before any block.
fn item_len(bytes: &[u8]) -> usize {
    let (mut braces, mut brackets) = (0usize, 0usize);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'[' | b'(' => brackets += 1,
            b']' | b')' => brackets = brackets.saturating_sub(1),
            b'{' => braces += 1,
            b'}' if braces <= 1 => return at + 1,
            b'}' => braces -= 1,
            b';' if braces == 0 && brackets == 0 => return at + 1,
            _ => {}
        }
    }
    bytes.len()
}

/// First path segments of the members of a `use` group whose `{` has just been passed.
fn group_members(group: &str) -> Vec<&str> {
    let mut members = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b',' | b'}' if depth == 0 => {
                members.push(group[start..at].trim());
                start = at + 1;
                if byte == b'}' {
                    break;
                }
            }
            b'}' => depth -= 1,
            _ => {}
        }
    }
    members.into_iter().map(|member| &member[..identifier_len(member.as_bytes())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        for hidden in [
            "// unsafe",
            "/* a /* unsafe */ unsafe */",
            r#""unsafe \" unsafe""#,
            r##"r#"unsafe " unsafe"#"##,
            r##"br#"unsafe"#"##,
            "'\\'' /* unsafe */",
            "//! unsafe\n",
        ] {
            let source = format!("a{{ {hidden}\n unsafe }}");
            let line = 1 + source.rfind("\n").map_or(0, |at| source[..=at].matches('\n').count());
            assert_eq!(lines_with(&code_only(&source), "unsafe"), [line], "{source}");
        }
        let kept = "fn f<'a>(x: &'a str, r#type: u8) -> char { '\"' } // \" unsafe";
        assert!(code_only(kept).starts_with("fn f<'a>(x: &'a str, r#type: u8) -> char {     }"), "{}", code_only(kept));
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(lines_with("#![forbid(unsafe_code)]\nunsafe fn", "unsafe"), [2]);
        assert_eq!(lines_with("use std::{fmt::{self, Write}, fs,\n io::Read};\nstd::fs::read", "std::fs"), [1, 3]);
        assert_eq!(lines_with("use std::{fmt, io::Read};", "std::io"), [1]);
        assert_eq!(lines_with("use std::{fmt::{fs}, iox};", "std::fs"), [0usize; 0]);
    }

    #[test]
    fn tests_are_cut_out() {
        let code = "a();\n#[cfg(test)]\nuse b;\nc();\n#[cfg(test)]\nmod tests {\n fn d() { [0; 3]; }\n e();\n}\nf();";
        let rest = without_tests(code);
        for (word, lines) in [("a", vec![1]), ("b", vec![]), ("c", vec![4]), ("d", vec![]), ("e", vec![]), ("f", vec![10])] {
            assert_eq!(lines_with(&rest, word), lines, "{word} in {rest}");
        }
    }
}
