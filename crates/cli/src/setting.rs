//! The setting of a sweep: an earlier file is continued only if its setting is the same.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::environment::Run;

/// The model, how and where it was run, and the build that ran it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SweepSetting {
    /// The name of a size with random weights; else `sha256:` and the digest of the folder's configuration and weights.
    pub(crate) model: String,
    pub(crate) seed: u64,
    pub(crate) dtype: String,
    pub(crate) targets: String,
    pub(crate) trials: usize,
    pub(crate) device: String,
    pub(crate) processor: String,
    pub(crate) cpu_features: String,
    pub(crate) cores: usize,
    pub(crate) threads: usize,
    pub(crate) commit: String,
    /// Digest of the executable: two builds of one commit can differ.
    pub(crate) build: String,
}

/// An earlier result file: its rows, and its setting as it was written.
#[derive(Deserialize)]
struct Earlier<C> {
    setting: serde_json::Map<String, Value>,
    rows: Vec<C>,
}

impl SweepSetting {
    /// The setting of this run on `device`.
    pub(crate) fn new(
        run: &Run,
        device: String,
        (model, seed): (&str, u64),
        targets: String,
        trials: usize,
    ) -> Result<Self> {
        let executable = std::env::current_exe().context("the executable cannot be found")?;
        Ok(Self {
            model: model_digest(model)?,
            seed,
            dtype: run.dtype.clone(),
            targets,
            trials,
            device,
            processor: run.processor.clone(),
            cpu_features: run.cpu_features.join(" "),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            threads: run.threads,
            commit: run.commit.to_owned(),
            build: digest(&[&executable])?,
        })
    }

    /// The cells that an earlier run left in `path`. An error that names the differences, if its setting was another.
    pub(crate) fn earlier_cells<C: for<'a> Deserialize<'a>>(&self, path: &Path) -> Result<Vec<C>> {
        let name = path.display();
        let text = std::fs::read(path).with_context(|| format!("{name}: cannot be read"))?;
        if text.is_empty() {
            return Ok(vec![]);
        }
        let remedy = "name another file, or add --restart to measure all cells again";
        let Ok(earlier) = serde_json::from_slice::<Earlier<C>>(&text) else {
            bail!("{name}: exists and is not the result of a sweep: {remedy}");
        };
        let differences = self.differences(&earlier.setting)?;
        if !differences.is_empty() {
            bail!("{name}: holds cells of another setting: {}: {remedy}", differences.join("; "));
        }
        Ok(earlier.rows)
    }

    /// Each field in which an earlier setting differs, as text with both values.
    fn differences(&self, earlier: &serde_json::Map<String, Value>) -> Result<Vec<String>> {
        let Value::Object(own) = serde_json::to_value(self).context("the setting cannot be written as JSON")? else {
            bail!("the setting is not a JSON object");
        };
        let shown = |value: Option<&Value>| match value {
            None | Some(Value::Null) => "unknown".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let differs = own.iter().filter(|(key, value)| earlier.get(*key) != Some(value));
        let sentence = |(key, value): (&String, &Value)| {
            let name = key.replace('_', " ");
            format!("{name} {} there, {} now", shown(earlier.get(key)), shown(Some(value)))
        };
        Ok(differs.map(sentence).collect())
    }
}

/// The name of a published size, or the digest of a folder's model.
fn model_digest(model: &str) -> Result<String> {
    let folder = Path::new(model);
    if !folder.is_dir() {
        return Ok(model.to_owned());
    }
    let files = ["config.json", "model.safetensors"].map(|name| folder.join(name));
    Ok(format!("sha256:{}", digest(&[&files[0], &files[1]])?))
}

/// The first 16 hexadecimal digits of the SHA-256 of files one after the other.
fn digest(files: &[&Path]) -> Result<String> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let unreadable = || format!("{}: cannot be read", path.display());
        let mut file = std::fs::File::open(path).with_context(unreadable)?;
        loop {
            match file.read(&mut buffer).with_context(unreadable)? {
                0 => break,
                n => sha.update(&buffer[..n]),
            }
        }
    }
    Ok(sha.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use fused_lora::DType;

    use super::*;

    fn setting() -> SweepSetting {
        let run = Run::new("cpu", DType::F32);
        SweepSetting::new(&run, "cpu".into(), ("gpt2", 0), "[Q]".into(), 5).unwrap()
    }

    #[test]
    fn every_field_must_agree() {
        let own = setting();
        let Value::Object(written) = serde_json::to_value(&own).unwrap() else { panic!("an object") };
        assert_eq!(own.differences(&written).unwrap(), [""; 0]);
        for key in written.keys() {
            let mut other = written.clone();
            other.insert(key.clone(), Value::from("something else"));
            let differences = own.differences(&other).unwrap();
            assert_eq!(differences.len(), 1, "{key}");
            assert!(differences[0].contains("something else there, "), "{differences:?}");
            other.remove(key);
            assert!(own.differences(&other).unwrap()[0].contains("unknown there"), "{key}");
        }
    }
}
