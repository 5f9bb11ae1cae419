//! Checks a kernel's machine code against the rules.

use crate::disassembly::Code;
use crate::ptxas::Usage;
use crate::rules::Rule;

/// The rules that a kernel's machine code for a target violates, a phrase for each.
pub(crate) fn violations(kernel: &str, target: &str, usage: &Usage, code: &Code, rules: &[Rule]) -> Vec<String> {
    let mut found = vec![];
    // The compiler may move a load above the wait, where the preceding launch may still be writing the loaded memory.
    let reads = |name: &&String| {
        ["LD.", "LDG.", "LDGSTS.", "ATOM.", "ATOMG.", "RED.", "REDG."].iter().any(|read| name.starts_with(read))
    };
    if let Some(early) = code.before_wait.iter().flatten().find(reads) {
        found.push(format!("has {early} before it waits for the preceding launch"));
    }
    let instructions = &code.instructions;
    if usage.spills > 0 {
        found.push(format!("{} bytes of spills", usage.spills));
    }
    if usage.stack > 0 {
        found.push(format!("a stack frame of {} bytes", usage.stack));
    }
    for rule in rules.iter().filter(|rule| rule.applies(kernel, target)) {
        if let Some(ceiling) = rule.registers.filter(|ceiling| usage.registers > *ceiling) {
            found.push(format!("more than {ceiling} registers"));
        }
        for pattern in &rule.has {
            if !instructions.iter().any(|name| pattern.matches(name)) {
                found.push(format!("no {pattern}"));
            }
        }
        for pattern in &rule.lacks {
            if let Some(name) = instructions.iter().find(|name| pattern.matches(name)) {
                found.push(format!("has {name}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;

    fn code(before_wait: Option<&[&str]>) -> Code {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Code {
            count: 3,
            instructions: names(&["EXIT", "HMMA.16816.F32", "LDG.E.128"]),
            before_wait: before_wait.map(names),
        }
    }

    fn check(rules: &str, usage: &Usage) -> Vec<String> {
        violations("kernel", "sm_80", usage, &code(None), &Rules::parse(rules).unwrap().rules)
    }

    const USAGE: Usage = Usage { registers: 64, shared: 0, stack: 0, spills: 0 };

    #[test]
    fn code_that_follows_the_rules_passes() {
        let rules = "// sass: kernel registers <= 64 has HMMA has LDG.E.128 lacks HGMMA\n// sass: other has HGMMA\n";
        assert!(check(rules, &USAGE).is_empty());
    }

    #[test]
    fn each_rule_can_fail() {
        assert_eq!(check("// sass: k* registers <= 63", &USAGE), ["more than 63 registers"]);
        assert_eq!(check("// sass: * has LDG.E.64", &USAGE), ["no LDG.E.64"]);
        assert_eq!(check("// sass: *l lacks HMMA", &USAGE), ["has HMMA.16816.F32"]);
    }

    #[test]
    fn spills_and_stack_frames_need_no_rule_to_fail() {
        assert_eq!(check("", &Usage { spills: 4, ..USAGE }), ["4 bytes of spills"]);
        assert_eq!(check("", &Usage { stack: 8, ..USAGE }), ["a stack frame of 8 bytes"]);
    }

    #[test]
    fn nothing_is_read_before_the_wait_for_the_preceding_launch() {
        let check = |early: &[&str]| violations("kernel", "sm_90a", &USAGE, &code(Some(early)), &[]);
        assert!(check(&["LDC", "CCTL.E.PF2", "UTMALDG.2D", "LDS.128"]).is_empty());
        assert_eq!(check(&["LDC", "LDG.E.CONSTANT"]), ["has LDG.E.CONSTANT before it waits for the preceding launch"]);
    }

    #[test]
    fn a_rule_for_another_target_does_not_apply() {
        assert!(check("// sass: kernel lacks HMMA on sm_75", &USAGE).is_empty());
    }
}
