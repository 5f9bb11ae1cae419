//! Regular expressions as Python's `re` reads them.
//!
//! The regex engine accepts all that `re` accepts, including look-around and backreferences, and more. Patterns that
//! `re` refuses, or that the engine would read differently, are refused here. So a pattern either means what it means
//! to PEFT, or is an error.

use fancy_regex::Regex;

/// A match is an error after this many backtracking steps, far more than any module's name needs.
const BACKTRACK_LIMIT: usize = 100_000;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Regex);

impl Pattern {
    /// `re.fullmatch(pattern, text)`.
    pub(crate) fn full(pattern: &str) -> Result<Self, String> {
        Self::compile(pattern, &format!(r"\A(?:{pattern})\z"))
    }

    /// `re.match(rf"(.*\.)?({pattern})$", text)`: a name that ends with the pattern, after a dot or as a whole.
    pub(crate) fn tail(pattern: &str) -> Result<Self, String> {
        Self::compile(pattern, &format!(r"\A(?:(.*\.)?({pattern})$)"))
    }

    /// `re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", text)`: a layer's number after the name of the list of
    /// layers.
    pub(crate) fn layer(pattern: &str) -> Result<Self, String> {
        Self::compile(pattern, &format!(r"\A(?:(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.)"))
    }

    /// `re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", text)`: the first number between dots, after two names.
    pub(crate) fn any_layer() -> Result<Self, String> {
        Self::compile("", r"\A.*?\.[^.]*\.(?P<idx>\d+)\.")
    }

    fn compile(pattern: &str, whole: &str) -> Result<Self, String> {
        check_syntax(pattern)?;
        let build = |text: &str| {
            fancy_regex::RegexBuilder::new(text)
                .backtrack_limit(BACKTRACK_LIMIT)
                .delegate_size_limit(1 << 20)
                .build()
                .map_err(|_| not_an_expression(pattern))
        };
        build(pattern)?;
        build(whole).map(Self)
    }

    pub(crate) fn is_match(&self, text: &str) -> Result<bool, String> {
        self.0.is_match(text).map_err(|_| "takes too many steps to match".into())
    }

    /// Whether the pattern matches, and the text of its group `idx` if that took part.
    pub(crate) fn index(&self, text: &str) -> Result<Option<Option<String>>, String> {
        let captures = self.0.captures(text).map_err(|_| String::from("takes too many steps to match"))?;
        Ok(captures.map(|c| c.name("idx").map(|group| group.as_str().to_owned())))
    }
}

fn not_an_expression(pattern: &str) -> String {
    format!("'{}' is not a regular expression", crate::error::one_line(pattern))
}

/// Refuses syntax that Python's `re` does not have, or that the engine would read differently.
fn check_syntax(pattern: &str) -> Result<(), String> {
    let unlike = |what: &str| {
        Err(format!("'{}' is not a regular expression of Python's: {what}", crate::error::one_line(pattern)))
    };
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    // A quantifier after a quantifier is an error in Python, unless it makes the first one lazy or possessive.
    let mut quantifiers = 0;
    while let Some(c) = chars.next() {
        let mut quantifier = 0;
        match c {
            '\\' => match chars.next() {
                Some(escaped) if escaped.is_ascii_alphabetic() && !"AbBdDsSwWnrtfvax".contains(escaped) => {
                    return unlike(&format!(r"it has \{escaped}"));
                }
                Some(_) => {}
                None => return Err(not_an_expression(pattern)),
            },
            '[' if in_class => return unlike("it has a set within a set"),
            '[' => {
                in_class = true;
                chars.next_if_eq(&'^');
                // In Python, a bracket at the start of a set stands for itself.
                if chars.next_if_eq(&']').is_some() {
                    return unlike("it has a set that begins with a bracket");
                }
            }
            ']' => in_class = false,
            '&' | '~' | '-' if in_class && chars.peek() == Some(&c) => return unlike("it has a set operation"),
            _ if in_class => {}
            '(' if chars.next_if_eq(&'?').is_some() => match chars.next() {
                Some(':' | '=' | '!') => {}
                Some('<') if matches!(chars.peek(), Some('=' | '!')) => {}
                Some('P') if matches!(chars.peek(), Some('<' | '=')) => {}
                _ => return unlike("it has a group of another kind than (?:, (?=, (?!, (?<=, (?<!, (?P<, (?P="),
            },
            '*' | '+' | '?' | '{' => {
                let second = quantifiers == 1 && matches!(c, '?' | '+');
                if quantifiers > 0 && !second {
                    return unlike("it repeats a repetition");
                }
                if c == '{' {
                    let mut inside = chars.clone();
                    let text: String = inside.by_ref().take_while(|c| *c != '}').collect();
                    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
                    let plain = match text.split_once(',') {
                        Some((low, high)) => number(low) && (high.is_empty() || number(high)),
                        None => number(&text),
                    };
                    if !plain {
                        return unlike("it has a brace that opens no repetition of {n}, {n,} or {n,m}");
                    }
                    chars = inside;
                }
                quantifier = quantifiers + 1;
            }
            _ => {}
        }
        quantifiers = quantifier;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_python_refuses_or_reads_differently() {
        for pattern in [
            r"\h",
            r"\K",
            r"\Z",
            r"\z",
            r"\p{L}",
            "(?>a)",
            "(?i)a",
            "(?|a)",
            "a**",
            "a+++",
            "a{2}{3}",
            "a{,3}",
            "a{x}",
            "[[a]]",
            "[]a]",
            "[a&&b]",
            "[a--b]",
            "(",
            "a)",
            "[a",
            "*",
            "a\\",
            "(?P>a)",
            "a{1000}{1000}",
            "a)(b",
        ] {
            assert!(Pattern::full(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn patterns_that_python_accepts() {
        let cases = [
            ("c_attn", "c_attn", true),
            ("c_attn", "h.0.c_attn", false),
            (r".*\.c_(attn|proj)", "h.0.c_proj", true),
            (r".*(?<!mlp)\.c_proj", "h.0.attn.c_proj", true),
            (r".*(?<!mlp)\.c_proj", "h.0.mlp.c_proj", false),
            (r"(?!lm_head).*", "lm_head", false),
            (r"(?P<x>a)(?P=x)", "aa", true),
            (r"(a)\1+?b", "aab", true),
            (r"a|b", "ab", false),
            (r"h\.\d{1,2}\.[^.]+", "h.11.mlp", true),
            (r"a++", "aa", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(Pattern::full(pattern).unwrap().is_match(text), Ok(expected), "{pattern} {text}");
        }
        assert!(Pattern::tail("c_attn").unwrap().is_match("h.0.c_attn").unwrap());
        assert!(!Pattern::tail("attn").unwrap().is_match("h.0.c_attn").unwrap());
        // The alternatives end at the parentheses that PEFT puts around a key.
        assert!(!Pattern::tail("a|b").unwrap().is_match("a.c").unwrap());
        let number = |n: &str| Ok(Some(Some(n.to_owned())));
        assert_eq!(Pattern::layer("h").unwrap().index("transformer.h.11.attn.c_attn"), number("11"));
        assert_eq!(Pattern::layer("h").unwrap().index("h.11.attn.c_attn"), number("11"));
        assert_eq!(Pattern::layer("h").unwrap().index("transformer.gh.11.attn"), Ok(None));
        // PEFT puts no parentheses here, so the first alternative has no number.
        assert_eq!(Pattern::layer("h|x").unwrap().index("h.1.attn"), Ok(Some(None)));
        assert_eq!(Pattern::any_layer().unwrap().index("transformer.h.11.attn.c_attn"), number("11"));
        assert_eq!(Pattern::any_layer().unwrap().index("h.11.attn.c_attn"), Ok(None));
    }

    #[test]
    fn a_match_with_too_many_steps_is_an_error() {
        let pattern = Pattern::full(r"(?:(?=a)a|(?=a)a)*b").unwrap();
        assert!(pattern.is_match(&"a".repeat(60)).is_err());
    }
}
