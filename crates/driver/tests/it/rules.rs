//! Every rule, broken by a call and kept by the one beside it.

mod captures;
mod handles;
mod launches;
mod memory;
mod tensor_maps;
mod while_capturing;

use std::collections::HashSet;

use fused_lora_driver::Rule;

use crate::calls::{start, text_of, violations};
use crate::process;

/// A call that breaks a rule.
pub(crate) struct Case {
    pub(crate) rule: Rule,
    /// The function that must find it.
    pub(crate) call: &'static str,
    pub(crate) name: &'static str,
    /// Options of the driver.
    options: &'static str,
    before: fn(),
    /// Prepares and makes the call, which returns the rule's code.
    broken: fn() -> u32,
    /// Prepares and makes the call as it should be.
    kept: fn() -> u32,
}

/// What most cases have in common.
const CASE: Case =
    Case { rule: Rule::Initialised, call: "", name: "", options: "", before: start, broken: || 0, kept: || 0 };

/// All cases.
pub(crate) fn cases() -> impl Iterator<Item = &'static Case> {
    let lists: [&[Case]; 6] =
        [handles::CASES, memory::CASES, captures::CASES, while_capturing::CASES, launches::CASES, tensor_maps::CASES];
    lists.into_iter().flatten()
}

impl Case {
    /// The right call first: what it leaves must not be a capture, which the wrong one may.
    fn check(&self) {
        (self.before)();
        let code = (self.kept)();
        assert_eq!(code, 0, "the right call: {}", text_of(code));
        assert_eq!(violations(), 0, "right calls that broke a rule");

        let code = (self.broken)();
        let counted = u64::from(!self.rule.may_be_left_to_the_driver());
        assert_eq!(violations(), counted, "calls that broke a rule; the last gave {code}: {}", text_of(code));
        if self.rule == Rule::Ordered {
            assert_eq!(code, 0, "a race is found when work runs, and does not end it");
            return;
        }
        let text = text_of(code);
        assert_eq!(code, self.rule.code(), "{text}");
        assert!(text.starts_with(&format!("{}: ", self.call)), "{text}");
        assert!(text.contains(self.rule.name()), "{text}");
    }
}

#[test]
fn a_call_that_breaks_a_rule_is_refused_and_the_one_beside_it_is_not() {
    let test = concat!(module_path!(), "::a_call_that_breaks_a_rule_is_refused_and_the_one_beside_it_is_not");
    let chosen = process::case_of(test);
    let run = |case: &Case| process::run(test, case.name, case.options, || case.check()).err();
    let chosen = cases().filter(|case| chosen.as_ref().is_none_or(|chosen| chosen == case.name));
    let failures: Vec<String> = chosen.filter_map(run).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_rule_has_a_case() {
    let covered: HashSet<Rule> = cases().map(|case| case.rule).collect();
    let missing: Vec<&Rule> = Rule::ALL.iter().filter(|rule| !covered.contains(rule)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let mut names = HashSet::new();
    assert!(cases().all(|case| names.insert(case.name)));
}
