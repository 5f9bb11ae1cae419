//! Replaces code addresses in reports by lines of the kernels' sources.

use std::process::Command;

use crate::library::MachineApi;

/// Replaces each `@0x<number>` of a report by file and line, if `addr2line` finds them.
pub(crate) fn resolve(report: &str, api: &MachineApi) -> String {
    let mut text = String::new();
    let mut rest = report;
    while let Some(start) = rest.find("@0x") {
        let digits = rest[start + 3..].chars().take_while(char::is_ascii_hexdigit).count();
        let end = start + 3 + digits;
        text.push_str(&rest[..start]);
        let line = u32::from_str_radix(&rest[start + 3..end], 16).ok().and_then(|number| line_of(number, api));
        text.push_str(&line.unwrap_or_else(|| rest[start..end].to_owned()));
        rest = &rest[end..];
    }
    text + rest
}

fn line_of(number: u32, api: &MachineApi) -> Option<String> {
    let (library, address) = api.site(number)?;
    // A return address points after the call, so the byte before it belongs to the call.
    let address = address.checked_sub(1)?;
    let output =
        Command::new("addr2line").args(["-i", "-s", "-e", &library, &format!("{address:#x}")]).output().ok()?;
    let lines = String::from_utf8(output.stdout).ok()?;
    // addr2line lists inlined calls from the innermost out; the innermost are in the host headers, not in the kernel.
    let known = || lines.lines().map(str::trim).filter(|line| !line.starts_with('?'));
    known().find(|line| !line.starts_with("memory.h") && !line.starts_with("atomic.h")).map(str::to_owned)
}
