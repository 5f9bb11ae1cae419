//! Reads cuobjdump's listing of machine code: the instructions of each kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Result;
use regex::Regex;

/// The machine code of each kernel.
pub(crate) type Kernels = BTreeMap<String, Code>;

/// The instructions of a kernel, by names such as `LDG.E.128.CONSTANT`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Code {
    pub(crate) instructions: BTreeSet<String>,
    /// The number of instructions, the padding at the end included.
    pub(crate) count: usize,
    /// If the kernel waits for the preceding launch, the instructions before the first such wait.
    pub(crate) before_wait: Option<BTreeSet<String>>,
}

/// The instruction that `griddepcontrol.wait` is compiled to.
const WAIT: &str = "ACQBULK";

/// Reads the output of `cuobjdump -sass`.
pub(crate) fn parse(text: &str) -> Result<Kernels> {
    let function = Regex::new(r"^\s*Function : (\S+)")?;
    // Address, optional predicate, name.
    let instruction = Regex::new(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9a-z_.]*)")?;
    let mut kernels = Kernels::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(found) = function.captures(line) {
            current = Some(kernels.entry(found[1].to_owned()).or_default());
        } else if let (Some(code), Some(found)) = (&mut current, instruction.captures(line)) {
            let name = &found[1];
            if name == WAIT && code.before_wait.is_none() {
                code.before_wait = Some(code.instructions.clone());
            }
            code.instructions.insert(name.to_owned());
            code.count += 1;
        }
    }
    Ok(kernels)
}

/// An instruction with some of its modifiers. `LDG.E.128` matches `LDG.E.NA.LTC128B.128.CONSTANT`, because the compiler
/// inserts cache hints; it does not match `LDG.E.64`, and `LDG` does not match `LDGSTS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    parts: Vec<String>,
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        Self { parts: text.split('.').map(str::to_owned).collect() }
    }

    /// Whether `instruction` has this name, and all these modifiers in this order.
    pub(crate) fn matches(&self, instruction: &str) -> bool {
        let mut parts = instruction.split('.');
        let mut wanted = self.parts.iter();
        wanted.next().map(String::as_str) == parts.next() && wanted.all(|part| parts.any(|other| other == part))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "
\tcode for sm_90a
\t\tFunction : first
\t.headerflags\t@\"EF_CUDA_SM90\"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                        /* 0x00000a00ff017b82 */
                                                                                 /* 0x000fe200078e00ff */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;     /* 0x0000000402047981 */
        /*0020*/             @!UPT UIADD3 URZ, URZ, URZ, URZ ;                   /* 0x000000fffff0e290 */
        /*10030*/                  HGMMA.64x64x16.F32 R24, gdesc[UR8], R24 ;     /* 0x0000000000007918 */

\t\tFunction : second
        /*0000*/                   EXIT ;                                        /* 0x000000000000794d */
";

    #[test]
    fn each_kernel_gets_its_instructions() {
        let kernels = parse(LISTING).unwrap();
        assert_eq!(kernels.keys().collect::<Vec<_>>(), ["first", "second"]);
        let first: Vec<_> = kernels["first"].instructions.iter().map(String::as_str).collect();
        assert_eq!(first, ["HGMMA.64x64x16.F32", "LDC", "LDG.E.128.CONSTANT", "UIADD3"]);
        assert_eq!(kernels["first"].before_wait, None);
    }

    #[test]
    fn instructions_before_the_wait_are_recorded() {
        let waits = LISTING.replace("@!UPT UIADD3 URZ, URZ, URZ, URZ ;", "ACQBULK ;");
        let early = parse(&waits).unwrap()["first"].before_wait.clone().unwrap();
        assert_eq!(early.iter().map(String::as_str).collect::<Vec<_>>(), ["LDC", "LDG.E.128.CONSTANT"]);
    }

    #[test]
    fn a_pattern_is_a_name_and_some_modifiers() {
        let fits = |pattern: &str, name: &str| Pattern::new(pattern).matches(name);
        assert!(fits("LDG.E.128", "LDG.E.128"));
        assert!(fits("LDG.E.128", "LDG.E.NA.LTC128B.128.CONSTANT"));
        assert!(fits("HMMA", "HMMA.16816.F32.BF16"));
        assert!(!fits("LDG.E.128", "LDG.E.64"));
        assert!(!fits("LDG", "LDGSTS.E.128"));
        assert!(!fits("HMMA.16816", "HMMA"));
    }
}
