//! Reads the result files of `fused-lora table1 --json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// A result file; only the fields that the report needs.
#[derive(Debug, Deserialize)]
pub(crate) struct Results {
    pub(crate) run: Run,
    pub(crate) model: String,
    pub(crate) lm_head: bool,
    #[serde(default)]
    pub(crate) gpu: Option<Gpu>,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Run {
    pub(crate) command: String,
    pub(crate) commit: String,
    pub(crate) date: String,
    pub(crate) device: String,
    pub(crate) processor: String,
    pub(crate) dtype: String,
    pub(crate) threads: usize,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Gpu {
    pub(crate) name: String,
    pub(crate) driver_cuda: String,
    pub(crate) l2_bytes: usize,
    pub(crate) clocks_before: Option<String>,
    pub(crate) clocks_after: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Row {
    pub(crate) method: String,
    #[serde(default)]
    pub(crate) issued: Option<String>,
    #[serde(default)]
    pub(crate) decode: bool,
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) parameters: usize,
    pub(crate) trials: usize,
    pub(crate) mean_ms: f64,
    pub(crate) std_ms: f64,
    pub(crate) median_ms: f64,
    #[serde(default)]
    pub(crate) host_median_ms: Option<f64>,
    #[serde(default)]
    pub(crate) launches: Option<usize>,
    #[serde(default)]
    pub(crate) launches_per_layer: Option<usize>,
    #[serde(default)]
    pub(crate) device_bytes: Option<usize>,
    pub(crate) percent_over_none: Option<f64>,
    pub(crate) percent_low: Option<f64>,
    pub(crate) percent_high: Option<f64>,
    pub(crate) paper_percent_over_none: Option<f64>,
}

impl Results {
    /// The GPU or the processor.
    pub(crate) fn device(&self) -> &str {
        self.gpu.as_ref().map_or(&self.run.processor, |gpu| &gpu.name)
    }

    /// The rows of each column and mode, in their order.
    pub(crate) fn columns(&self) -> Vec<Vec<&Row>> {
        let mut columns: Vec<Vec<&Row>> = vec![];
        for row in &self.rows {
            let key = |row: &Row| (row.decode, row.batch, row.tokens, row.issued.clone());
            match columns.iter_mut().find(|column| key(column[0]) == key(row)) {
                Some(column) => column.push(row),
                None => columns.push(vec![row]),
            }
        }
        columns
    }
}

/// What the stand-in driver (`crates/driver`) puts into the name of its devices.
const EMULATED: &str = "its times are no measurements";

/// Every `table1*.json` of every folder, by its path below results/. Every file of that folder must be a measurement.
pub(crate) fn read(results: &Path) -> Result<BTreeMap<PathBuf, Results>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![results.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            ensure!(!text.contains(EMULATED), "{}: was made on the stand-in driver", path.display());
            if name.starts_with("table1") && name.ends_with(".json") {
                let parsed: Results = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
                if parsed.rows.is_empty() {
                    bail!("{}: has no rows", path.display());
                }
                found.insert(path.strip_prefix(results)?.to_path_buf(), parsed);
            }
        }
    }
    ensure!(!found.is_empty(), "there are no results");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_the_stand_in_driver_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let name = include_str!("../../driver/src/limits.rs").lines().find(|line| line.contains("NAME: &str")).unwrap();
        std::fs::write(folder.path().join("forward.json"), format!("{{\"gpu\": \"{}\"}}", name.replace('"', "")))
            .unwrap();
        let error = read(folder.path()).unwrap_err();
        assert!(error.to_string().contains("was made on the stand-in driver"), "{error:#}");
    }
}
