//! Code addresses in reports, turned into lines of the kernels' sources.

use std::process::Command;

/// Replaces each `@0x...` of a report by file and line, where `addr2line` can tell.
pub(crate) fn resolve(report: &str, library: &str) -> String {
    let mut text = String::new();
    let mut rest = report;
    while let Some(start) = rest.find("@0x") {
        let digits = rest[start + 3..].chars().take_while(char::is_ascii_hexdigit).count();
        let end = start + 3 + digits;
        text.push_str(&rest[..start]);
        text.push_str(&line_of(&rest[start + 1..end], library).unwrap_or_else(|| rest[start..end].to_owned()));
        rest = &rest[end..];
    }
    text + rest
}

fn line_of(address: &str, library: &str) -> Option<String> {
    // A return address points behind the call.
    let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?.checked_sub(1)?;
    let output = Command::new("addr2line").args(["-i", "-s", "-e", library, &format!("{address:#x}")]).output().ok()?;
    let lines = String::from_utf8(output.stdout).ok()?;
    // Inlined calls are listed innermost first; the innermost are the twins' own headers.
    let known = || lines.lines().map(str::trim).filter(|line| !line.starts_with('?'));
    known().find(|line| !line.starts_with("memory.h") && !line.starts_with("atomic.h")).map(str::to_owned)
}
