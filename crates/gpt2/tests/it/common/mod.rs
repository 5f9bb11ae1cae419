//! Golden files, damaged copies of them, and what errors about these must say.
#![allow(unreachable_pub)]

pub mod device;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fused_lora_gpt2::adapter::bottleneck::{Bottleneck, Kind};
use fused_lora_gpt2::{Checkpoint, Config, Error, Model, Result};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value};
use tempfile::TempDir;

pub fn golden(name: &str) -> PathBuf {
    // Tests that were built on another machine get the folder from the script that runs them.
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    std::env::var_os("FUSED_LORA_TEST_GOLDEN").map_or_else(|| here.into(), PathBuf::from).join(name)
}

/// A golden tensor, computed in float64.
pub fn expected(key: &str) -> Vec<f64> {
    let file = Checkpoint::open(&golden("expected.safetensors")).unwrap();
    let (dtype, _, bytes) = file.raw(key).unwrap();
    assert_eq!(dtype, Dtype::F64);
    bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

/// The golden batch of token ids.
pub fn tokens() -> Vec<Vec<u32>> {
    Checkpoint::open(&golden("expected.safetensors")).unwrap().token_ids("tokens").unwrap()
}

pub fn config() -> Config {
    Config::read(&golden("model/config.json")).unwrap()
}

pub fn model() -> Model<f32> {
    Model::load(&golden("model")).unwrap()
}

pub fn bottleneck(file: &Path, kind: Kind) -> Result<Bottleneck<f32>> {
    Bottleneck::load(file, kind, &config())
}

/// A tensor as it is stored in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Stored {
    /// Small values, all different and none of them 0.
    pub fn f32(shape: &[usize]) -> Self {
        let len = shape.iter().product();
        let data = (1..=len).flat_map(|i| (i as f32 * 1e-3).to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), data }
    }

    /// Sets the last element to `value`.
    pub fn set_last(&mut self, value: f32) {
        assert_eq!(self.dtype, Dtype::F32);
        let start = self.data.len() - 4;
        self.data[start..].copy_from_slice(&value.to_le_bytes());
    }
}

pub type Tensors = BTreeMap<String, Stored>;

/// A copy of a golden folder that may be damaged.
pub struct Folder {
    place: TempDir,
}

impl Folder {
    pub fn of(name: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(golden(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
        }
        Self { place }
    }

    pub fn path(&self) -> &Path {
        self.place.path()
    }

    fn with_extension(&self, extension: &str) -> PathBuf {
        let mut entries = std::fs::read_dir(self.path()).unwrap().map(|e| e.unwrap().path());
        entries.find(|p| p.extension().is_some_and(|e| e == extension)).unwrap()
    }

    /// The configuration: `config.json` or `adapter_config.json`.
    pub fn json(&self) -> PathBuf {
        self.with_extension("json")
    }

    /// The safetensors file.
    pub fn weights(&self) -> PathBuf {
        self.with_extension("safetensors")
    }

    /// Sets a field of the configuration, or removes it.
    pub fn set(&self, field: &str, value: Option<Value>) {
        let path = self.json();
        let mut map: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        match value {
            Some(value) => drop(map.insert(field.into(), value)),
            None => drop(map.shift_remove(field)),
        }
        std::fs::write(path, serde_json::to_vec(&map).unwrap()).unwrap();
    }

    pub fn tensors(&self) -> Tensors {
        let bytes = std::fs::read(self.weights()).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let stored = |view: TensorView<'_>| Stored {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        };
        file.iter().map(|(key, view)| (key.to_string(), stored(view))).collect()
    }

    pub fn write(&self, tensors: &Tensors) {
        let views = tensors.iter().map(|(key, t)| (key, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
        let bytes = safetensors::serialize(views, None).unwrap();
        // The old file may be mapped by a model, so it is replaced, not overwritten.
        let fresh = tempfile::NamedTempFile::new_in(self.path()).unwrap();
        std::fs::write(fresh.path(), bytes).unwrap();
        fresh.persist(self.weights()).unwrap();
    }

    pub fn edit(&self, edit: impl FnOnce(&mut Tensors)) {
        let mut tensors = self.tensors();
        edit(&mut tensors);
        self.write(&tensors);
    }
}

/// A fault of one tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    Missing,
    WrongShape,
    Flat,
    Integers,
    NaN,
    Infinity,
}

impl Fault {
    pub const ALL: [Fault; 6] =
        [Fault::Missing, Fault::WrongShape, Fault::Flat, Fault::Integers, Fault::NaN, Fault::Infinity];

    pub fn apply(self, tensors: &mut Tensors, key: &str) {
        let tensor = tensors.get_mut(key).unwrap();
        match self {
            Fault::Missing => drop(tensors.remove(key)),
            Fault::WrongShape => {
                tensor.shape[0] += 1;
                *tensor = Stored::f32(&tensor.shape);
            }
            // The same number of elements in another number of dimensions.
            Fault::Flat if tensor.shape.len() > 1 => tensor.shape = vec![tensor.shape.iter().product()],
            Fault::Flat => tensor.shape.push(1),
            Fault::Integers => tensor.dtype = Dtype::I32,
            Fault::NaN => tensor.set_last(f32::NAN),
            Fault::Infinity => tensor.set_last(f32::NEG_INFINITY),
        }
    }

    /// A text that the error must contain, besides file and key.
    pub fn expected_message(self) -> &'static str {
        match self {
            Fault::Missing => "is missing, expected shape",
            Fault::WrongShape | Fault::Flat => "expected [",
            Fault::Integers => "is stored as I32, expected F32",
            Fault::NaN | Fault::Infinity => "not finite in f32",
        }
    }
}

/// Checks that the result is an error of one line that contains all of `parts`, and returns it.
#[track_caller]
pub fn assert_refused<T>(result: Result<T>, case: &str, parts: &[&str]) -> Error {
    let Err(error) = result else { panic!("{case}: was accepted") };
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{case}: {text}");
    for part in parts {
        assert!(text.contains(part), "{case}: expected '{part}' in: {text}");
    }
    error
}

/// A path as errors display it.
pub fn displayed(path: &Path) -> String {
    path.display().to_string()
}

/// The names of a folder's entries, hidden files included.
pub fn contents(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.collect()
}
