//! The table in README.md: every function that is called, the rules that it is held to, and the cases that break them.

use std::collections::{BTreeMap, BTreeSet};

use fused_lora_driver::Rule;

use crate::rules::cases;

const README: &str = include_str!("../../README.md");
/// The file that calls the driver.
const CALLER: &str = include_str!("../../../../src/device/cuda/driver.rs");

/// A row of the table.
struct Row {
    rules: BTreeSet<&'static str>,
    cases: BTreeSet<&'static str>,
}

/// The driver's functions that are looked up in src/device/cuda/driver.rs.
pub(crate) fn functions() -> Vec<&'static str> {
    let list = CALLER.split_once("\ndriver_functions! {\n").unwrap().1.split("\n}").next().unwrap();
    let listed = list.lines().filter_map(|line| line.trim().split_once('(')).map(|(name, _)| name);
    let others =
        CALLER.split("look_up(library, \"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(name, _)| name);
    listed.filter(|name| name.starts_with("cu")).chain(others).collect()
}

/// What a cell lists, between separators.
fn list(cell: &'static str, separator: &str) -> BTreeSet<&'static str> {
    cell.split(separator).map(str::trim).filter(|item| !item.is_empty()).collect()
}

fn table() -> BTreeMap<&'static str, Row> {
    let rows = README.lines().filter(|line| line.starts_with("| `cu"));
    let mut table = BTreeMap::new();
    for row in rows {
        let [_, name, rules, cases, _] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        let row = Row { rules: list(rules, ","), cases: list(cases, ";") };
        assert!(table.insert(name.trim().trim_matches('`'), row).is_none(), "{name} twice");
    }
    table
}

#[test]
fn the_table_has_every_function_that_is_called() {
    let rows: Vec<&str> = table().into_keys().collect();
    let mut functions = functions();
    functions.sort_unstable();
    assert!(functions.len() > 40);
    assert_eq!(rows, functions);
}

#[test]
fn the_table_has_every_rule_and_no_other() {
    let listed: BTreeSet<&str> = table().into_values().flat_map(|row| row.rules).collect();
    let rules: BTreeSet<&str> = Rule::ALL.iter().map(|rule| rule.name()).collect();
    assert_eq!(listed, rules);
}

#[test]
fn the_table_has_every_case_beside_its_function_and_rule() {
    let mut expected: BTreeMap<&str, BTreeSet<&str>> =
        functions().iter().map(|name| (*name, BTreeSet::new())).collect();
    let table = table();
    for case in cases() {
        assert!(table[case.call].rules.contains(case.rule.name()), "{}: {}", case.call, case.rule.name());
        expected.get_mut(case.call).unwrap().insert(case.name);
    }
    for (name, row) in &table {
        assert_eq!(row.cases, expected[name], "{name}");
    }
}

/// What the text says of rules: all of them have their place in the list of how they were checked.
#[test]
fn every_rule_is_in_exactly_one_list_of_how_it_was_checked() {
    let (_, lists) = README.split_once("## How the rules were checked").unwrap();
    let lists = lists.split("\n## ").next().unwrap();
    let words: Vec<&str> = lists.split(|letter: char| !letter.is_alphanumeric()).collect();
    for rule in Rule::ALL {
        let found = words.iter().filter(|word| **word == rule.name()).count();
        assert_eq!(found, 1, "{rule:?}");
    }
}
