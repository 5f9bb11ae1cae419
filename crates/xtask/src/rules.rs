//! Rules about a kernel's machine code. They are comments in its source, each of one line:
//!
//! ```text
//! // targets: sm_80 sm_90a
//! // sass: lora_decode_*  registers <= 64  has LDG.E.128  lacks HMMA  on sm_80 sm_90a
//! ```
//!
//! `targets:` names the targets that the file is compiled for; without it, all. A `sass:` line begins with the name of
//! a kernel, in which `*` matches any characters. `registers <= N` may occur once, `has` and `lacks` any number of
//! times. `on` comes last and names the targets that the rule applies to; without it, all targets of the file.

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;

use crate::disassembly::Pattern;
use crate::toolchain::{TARGETS, target};

/// The comments of one file.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) targets: Vec<&'static str>,
    pub(crate) rules: Vec<Rule>,
}

/// One `sass:` line.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Its line in the file, from 1.
    pub(crate) line: usize,
    pub(crate) kernels: Glob,
    pub(crate) registers: Option<u32>,
    pub(crate) has: Vec<Pattern>,
    pub(crate) lacks: Vec<Pattern>,
    pub(crate) targets: Vec<&'static str>,
}

/// A name in which `*` matches any characters.
#[derive(Debug)]
pub(crate) struct Glob {
    pub(crate) text: String,
    regex: Regex,
}

impl Rules {
    /// Reads the comments of a source file.
    pub(crate) fn parse(source: &str) -> Result<Self> {
        let comment = Regex::new(r"^\s*//\s*(sass|targets):(.*)$")?;
        let mut targets = None;
        let mut lines = vec![];
        for (index, text) in source.lines().enumerate() {
            let Some(found) = comment.captures(text) else { continue };
            let line = index + 1;
            if &found[1] == "targets" {
                ensure!(targets.is_none(), "line {line}: a second `targets:`");
                let list = parse_targets(found[2].split_whitespace()).with_context(|| format!("line {line}"))?;
                targets = Some(list);
            } else {
                lines.push((line, found[2].to_owned()));
            }
        }
        let targets = targets.unwrap_or_else(|| TARGETS.to_vec());
        let rules = lines
            .into_iter()
            .map(|(line, text)| Rule::parse(line, &text, &targets).with_context(|| format!("line {line}")))
            .collect::<Result<_>>()?;
        Ok(Self { targets, rules })
    }
}

impl Rule {
    /// Reads what follows `sass:` in a file compiled for `all`.
    fn parse(line: usize, text: &str, all: &[&'static str]) -> Result<Self> {
        let mut words = text.split_whitespace();
        let kernels = Glob::new(words.next().context("a rule begins with the name of a kernel")?)?;
        let mut rule = Self { line, kernels, registers: None, has: vec![], lacks: vec![], targets: all.to_vec() };
        while let Some(word) = words.next() {
            match word {
                "registers" => {
                    ensure!(rule.registers.is_none(), "a second `registers`");
                    ensure!(words.next() == Some("<="), "`registers` is followed by `<= N`");
                    let count = words.next().context("`registers <=` is followed by a number")?;
                    rule.registers = Some(count.parse().with_context(|| format!("`{count}` is not a number"))?);
                }
                "has" => rule.has.push(Pattern::new(words.next().context("`has` is followed by an instruction")?)),
                "lacks" => {
                    rule.lacks.push(Pattern::new(words.next().context("`lacks` is followed by an instruction")?));
                }
                "on" => {
                    rule.targets = parse_targets(words.by_ref())?;
                    if let Some(other) = rule.targets.iter().find(|target| !all.contains(target)) {
                        bail!("the file is not compiled for {other}");
                    }
                }
                other => bail!("`{other}` is none of `registers`, `has`, `lacks`, `on`"),
            }
        }
        ensure!(
            rule.registers.is_some() || !rule.has.is_empty() || !rule.lacks.is_empty(),
            "the rule has no `registers`, `has` or `lacks`"
        );
        Ok(rule)
    }

    /// Whether the rule applies to this kernel on this target.
    pub(crate) fn applies(&self, kernel: &str, target: &str) -> bool {
        self.targets.contains(&target) && self.kernels.matches(kernel)
    }
}

fn parse_targets<'a>(words: impl Iterator<Item = &'a str>) -> Result<Vec<&'static str>> {
    let targets = words.map(target).collect::<Result<Vec<_>>>()?;
    ensure!(!targets.is_empty(), "a list of targets is empty");
    Ok(targets)
}

impl Glob {
    fn new(text: &str) -> Result<Self> {
        let pieces: Vec<String> = text.split('*').map(regex::escape).collect();
        let regex = Regex::new(&format!("^{}$", pieces.join(".*")))?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Whether all of `name` matches.
    pub(crate) fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_rule_is_read() {
        let source = "// targets: sm_80 sm_86 sm_90a\n\n\
                      // sass: lora_*_rows  registers <= 64  has LDG.E.128 has FFMA lacks HMMA  on sm_80 sm_90a\n";
        let rules = Rules::parse(source).unwrap();
        assert_eq!(rules.targets, ["sm_80", "sm_86", "sm_90a"]);
        let [rule] = &rules.rules[..] else { panic!("one rule") };
        assert_eq!((rule.line, rule.registers), (3, Some(64)));
        assert_eq!((rule.has.len(), rule.lacks.len()), (2, 1));
        assert!(rule.applies("lora_decode_rows", "sm_80"));
        assert!(!rule.applies("lora_decode_rows", "sm_86"));
        assert!(!rule.applies("lora_decode_rows_bf16", "sm_80"));
    }

    #[test]
    fn without_on_and_targets_a_rule_applies_everywhere() {
        let rules = Rules::parse("  // sass: k registers <= 255").unwrap();
        assert_eq!(rules.targets, TARGETS);
        assert!(TARGETS.iter().all(|target| rules.rules[0].applies("k", target)));
    }

    #[test]
    fn other_comments_are_not_rules() {
        let rules = Rules::parse("// the sass: of it\nint x;  // sass: k has HMMA\n").unwrap();
        assert!(rules.rules.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (line, message) in [
            ("// sass:", "the name of a kernel"),
            ("// sass: k", "has no `registers`"),
            ("// sass: k registers < 64", "`<= N`"),
            ("// sass: k registers <= many", "`many` is not a number"),
            ("// sass: k registers <= 1 registers <= 2", "a second `registers`"),
            ("// sass: k has", "an instruction"),
            ("// sass: k needs HMMA", "`needs` is none of"),
            ("// sass: k has HMMA on", "list of targets is empty"),
            ("// sass: k has HMMA on sm_90", "no target `sm_90`"),
            ("// targets: sm_80\n// sass: k has HMMA on sm_75", "not compiled for sm_75"),
            ("// targets: sm_80\n// targets: sm_80", "a second `targets:`"),
        ] {
            let error = format!("{:#}", Rules::parse(line).unwrap_err());
            assert!(error.contains(message), "{line:?} gave {error:?}");
            assert!(error.starts_with("line "), "{error:?} says where");
        }
    }

    #[test]
    fn a_star_matches_any_characters() {
        let glob = Glob::new("a*c*").unwrap();
        assert!(glob.matches("ac") && glob.matches("abc_") && !glob.matches("ab") && !glob.matches("xac"));
        assert!(!Glob::new("a.c").unwrap().matches("abc"));
    }
}
