//! Folders with small adapters for a model of one MLP, which tests change and damage.
#![allow(missing_docs, unreachable_pub)]

use std::path::{Path, PathBuf};

use fused_lora_peft::{Adapter, Kind, Lora, Model, Module, PrefixModel, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

pub fn model() -> Model {
    let module = |name: &str, kind| Module { name: name.into(), kind };
    Model {
        description: "a model of one MLP".into(),
        adaptable: "up or down".into(),
        modules: vec![
            module("mlp", Kind::Other),
            module("mlp.up", Kind::Linear { d_in: 8, d_out: 16 }),
            module("mlp.down", Kind::Linear { d_in: 16, d_out: 8 }),
            module("head", Kind::Linear { d_in: 8, d_out: 5 }),
        ],
        output: Some("head".into()),
        default_targets: vec!["up".into()],
    }
}

pub fn prefix_model() -> PrefixModel {
    PrefixModel { layers: 2, width: 4, heads: 2 }
}

pub fn load(folder: &Folder) -> Result<Lora> {
    Adapter::open(folder.path())?.lora(&model(), 64)
}

pub struct Folder(TempDir);

impl Folder {
    fn new(fields: &Value, tensors: &[(&str, [usize; 2])]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::write(folder.config(), fields.to_string()).unwrap();
        let data: Vec<Vec<u8>> = tensors.iter().map(|(_, [rows, cols])| values(rows * cols)).collect();
        let views = tensors
            .iter()
            .zip(&data)
            .map(|((key, shape), data)| (*key, TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
        std::fs::write(folder.weights(), safetensors::serialize(views, None).unwrap()).unwrap();
        folder
    }

    pub fn lora() -> Self {
        let fields = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["up", "down"]});
        Self::new(
            &fields,
            &[
                ("base_model.model.mlp.up.lora_A.weight", [2, 8]),
                ("base_model.model.mlp.up.lora_B.weight", [16, 2]),
                ("base_model.model.mlp.down.lora_A.weight", [2, 16]),
                ("base_model.model.mlp.down.lora_B.weight", [8, 2]),
            ],
        )
    }

    pub fn prefix() -> Self {
        let fields = json!({
            "peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "num_layers": 2, "token_dim": 4,
            "num_attention_heads": 2,
        });
        Self::new(&fields, &[("prompt_embeddings", [3, 16])])
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn config(&self) -> PathBuf {
        self.path().join("adapter_config.json")
    }

    pub fn weights(&self) -> PathBuf {
        self.path().join("adapter_model.safetensors")
    }

    pub fn set(&self, field: &str, value: Value) {
        let mut map: Map<String, Value> = serde_json::from_slice(&std::fs::read(self.config()).unwrap()).unwrap();
        map.insert(field.into(), value);
        std::fs::write(self.config(), serde_json::to_vec(&map).unwrap()).unwrap();
    }
}

fn values(len: usize) -> Vec<u8> {
    (1..=len).flat_map(|i| (i as f32 * 0.25).to_le_bytes()).collect()
}
