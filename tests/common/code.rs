//! Replaces a piece of C++ code. White space and comments are ignored in the search, so that the bugs of tests/planted
//! still apply after a comment of a kernel was reworded.

use std::ops::Range;

/// The text with `original`, which must occur in it once, replaced.
///
/// # Errors
/// If the code does not occur in the text exactly once.
pub fn replace(text: &str, original: &str, planted: &str) -> Result<String, String> {
    let (code, pattern) = (Code::of(text), Code::of(original));
    let length = pattern.bytes.len();
    assert_ne!(length, 0, "a bug replaces code");
    let found: Vec<_> = code.bytes.windows(length).enumerate().filter(|(_, window)| *window == pattern.bytes).collect();
    match found[..] {
        [(at, _)] => {
            let Range { start, end } = code.places[at]..code.places[at + length - 1] + 1;
            Ok(format!("{}{planted}{}", &text[..start], &text[end..]))
        }
        _ => Err(format!("'{original}' is there {} times", found.len())),
    }
}

/// The code of a text without white space and comments, with the position of each of its bytes in the text.
struct Code {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Code {
    fn of(text: &str) -> Self {
        let mut code = Self { bytes: vec![], places: vec![] };
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let end = line.find("//").unwrap_or(line.len());
            for (i, byte) in line.bytes().enumerate().take(end).filter(|(_, byte)| !byte.is_ascii_whitespace()) {
                code.bytes.push(byte);
                code.places.push(start + i);
            }
            start += line.len();
        }
        code
    }
}

#[test]
fn comments_and_white_space_do_not_count() {
    let text = "a = 1;  // one\n  wait(\n    b);  // for b\nc();\n";
    assert_eq!(replace(text, "wait(b); // other words", "").unwrap(), "a = 1;  // one\n    // for b\nc();\n");
    assert_eq!(replace(text, "a = 1; wait(b)", "a = 2").unwrap(), "a = 2;  // for b\nc();\n");
    assert_eq!(replace(text, "d", "e").unwrap_err(), "'d' is there 0 times");
    assert_eq!(replace(text, ";", "").unwrap_err(), "';' is there 3 times");
}
