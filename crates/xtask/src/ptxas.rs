//! Reads what ptxas reports about each kernel with `--resource-usage`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use regex::Regex;

/// The report on one source for one target.
#[derive(Debug, Default)]
pub(crate) struct PtxasReport {
    pub(crate) kernels: BTreeMap<String, Usage>,
    /// Lines about wgmma that the compiler had to serialise or to guard (C7510 to C7519).
    pub(crate) warnings: Vec<String>,
}

/// The resources of a kernel.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Registers of a thread.
    pub(crate) registers: u32,
    /// Bytes of static shared memory of a CTA.
    pub(crate) shared: u32,
    /// Bytes of local memory of a thread, for arrays that are indexed at run time.
    pub(crate) stack: u32,
    /// Bytes of spilled registers of a thread, stores and loads.
    pub(crate) spills: u32,
}

impl PtxasReport {
    /// Reads what ptxas wrote.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let entry = Regex::new(r"Compiling entry function '([^']+)'")?;
        let memory = Regex::new(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")?;
        let registers = Regex::new(r"Used (\d+) registers")?;
        let shared = Regex::new(r"(\d+) bytes smem")?;
        let warning = Regex::new(r"\(C75\d\d\)")?;

        let mut report = Self::default();
        let mut kernel = None;
        for line in text.lines() {
            if let Some(found) = entry.captures(line) {
                kernel = Some(found[1].to_owned());
                report.kernels.insert(found[1].to_owned(), Usage::default());
                continue;
            }
            if warning.is_match(line) {
                let text = line.split_once(" : ").map_or(line, |(_, text)| text);
                report.warnings.push(text.trim().to_owned());
                continue;
            }
            let Some(usage) = kernel.as_ref().and_then(|name| report.kernels.get_mut(name)) else { continue };
            if let Some(found) = memory.captures(line) {
                // Functions that the kernel calls have their own lines.
                usage.stack = usage.stack.max(found[1].parse()?);
                usage.spills += found[2].parse::<u32>()? + found[3].parse::<u32>()?;
            }
            if let Some(found) = registers.captures(line) {
                usage.registers = found[1].parse()?;
                usage.shared = shared.captures(line).map_or(Ok(0), |found| found[1].parse())?;
            }
        }
        for (kernel, usage) in &report.kernels {
            ensure!(usage.registers > 0, "ptxas reports no registers for {kernel}");
        }
        Ok(report)
    }

    /// The usage of a kernel that is in the machine code.
    pub(crate) fn usage(&self, kernel: &str) -> Result<&Usage> {
        self.kernels.get(kernel).with_context(|| format!("ptxas reports nothing about {kernel}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized in the function 'b'
ptxas info    : 24 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_90a'
ptxas info    : Function properties for a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 21 registers, used 1 barriers, 256 bytes smem
ptxas info    : Compile time = 10.872 ms
ptxas info    : Compiling entry function 'b' for 'sm_90a'
ptxas info    : Function properties for b
    128 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for helper
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 128 bytes cumulative stack size
";

    #[test]
    fn usage_and_warnings_are_read() {
        let report = PtxasReport::parse(REPORT).unwrap();
        let expected = Usage { registers: 21, shared: 256, stack: 0, spills: 0 };
        assert_eq!(report.usage("a").unwrap(), &expected);
        let expected = Usage { registers: 255, shared: 0, stack: 128, spills: 16 };
        assert_eq!(report.usage("b").unwrap(), &expected);
        assert_eq!(report.warnings.len(), 1);
        assert!(report.warnings[0].starts_with("(C7511) Potential"), "without the prefix");
        assert!(report.usage("c").is_err());
    }

    #[test]
    fn a_report_cut_short_is_an_error() {
        assert!(PtxasReport::parse("ptxas info    : Compiling entry function 'a' for 'sm_80'\n").is_err());
    }
}
