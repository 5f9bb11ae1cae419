//! Compares two compilations of the kernels: what a change did to registers and instructions.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

/// The resources of a kernel on a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KernelStats {
    pub(crate) kernel: String,
    pub(crate) target: String,
    /// Registers of a thread.
    pub(crate) registers: u32,
    /// Bytes of static shared memory of a CTA.
    pub(crate) shared: u32,
    /// Instructions in the listing.
    pub(crate) instructions: usize,
}

pub(crate) fn read(path: &Path) -> Result<Vec<KernelStats>> {
    let mut reader = csv::Reader::from_path(path).with_context(|| path.display().to_string())?;
    reader.deserialize().collect::<Result<_, _>>().with_context(|| path.display().to_string())
}

pub(crate) fn write(path: &Path, stats: &[KernelStats]) -> Result<()> {
    let mut writer = csv::Writer::from_path(path).with_context(|| path.display().to_string())?;
    stats.iter().try_for_each(|row| writer.serialize(row)).with_context(|| path.display().to_string())?;
    writer.flush().with_context(|| path.display().to_string())
}

/// A table of the kernels that changed, were added or removed, and a phrase for each that needs more than before.
/// Targets that only one of the compilations has are left out.
pub(crate) fn compare(before: &[KernelStats], after: &[KernelStats]) -> (Table, Vec<String>) {
    let both = |stats: &&KernelStats| {
        let of = |other: &[KernelStats]| other.iter().any(|row| row.target == stats.target);
        of(before) && of(after)
    };
    let mut pairs: BTreeMap<(&str, &str), [Option<&KernelStats>; 2]> = BTreeMap::new();
    for (i, all) in [before, after].into_iter().enumerate() {
        for row in all.iter().filter(both) {
            pairs.entry((&row.kernel, &row.target)).or_default()[i] = Some(row);
        }
    }
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(["kernel", "target", "registers", "shared", "instructions"]);
    let mut grown = vec![];
    for ((kernel, target), [before, after]) in pairs.into_iter().filter(|(_, [before, after])| before != after) {
        let change = |of: fn(&KernelStats) -> usize| match (before.map(of), after.map(of)) {
            (Some(before), Some(after)) if before == after => before.to_string(),
            (before, after) => {
                let text = |value: Option<usize>| value.map_or("none".to_owned(), |value| value.to_string());
                format!("{} -> {}", text(before), text(after))
            }
        };
        if let (Some(before), Some(after)) = (before, after) {
            let resources = |row: &KernelStats| [row.registers as usize, row.instructions];
            for (name, (before, after)) in
                ["registers", "instructions"].iter().zip(resources(before).into_iter().zip(resources(after)))
            {
                if after > before {
                    grown.push(format!("{kernel} {target}: {after} {name} instead of {before}"));
                }
            }
        }
        let cells =
            [change(|row| row.registers as usize), change(|row| row.shared as usize), change(|row| row.instructions)];
        table.add_row([kernel, target].map(str::to_owned).into_iter().chain(cells));
    }
    table.column_iter_mut().skip(2).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    (table, grown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(kernel: &str, target: &str, registers: u32, instructions: usize) -> KernelStats {
        KernelStats { kernel: kernel.into(), target: target.into(), registers, shared: 0, instructions }
    }

    #[test]
    fn changes_are_listed_and_growth_is_reported() {
        let before = [
            stats("same", "sm_80", 32, 100),
            stats("fewer", "sm_80", 32, 100),
            stats("more", "sm_80", 32, 100),
            stats("gone", "sm_80", 32, 100),
            stats("same", "sm_75", 32, 100),
        ];
        let after = [
            stats("same", "sm_80", 32, 100),
            stats("fewer", "sm_80", 32, 90),
            stats("more", "sm_80", 33, 100),
            stats("new", "sm_80", 32, 100),
        ];
        let (table, grown) = compare(&before, &after);
        let text = table.to_string();
        assert_eq!(grown, ["more sm_80: 33 registers instead of 32"]);
        assert!(text.contains("100 -> 90") && text.contains("32 -> 33") && text.contains("100 -> none"), "{text}");
        assert!(text.contains("none -> 32") && !text.contains("same"), "{text}");
    }

    #[test]
    fn files_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rows) = (folder.path().join("sass.csv"), [stats("k", "sm_80", 32, 100)]);
        write(&path, &rows).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
    }
}
