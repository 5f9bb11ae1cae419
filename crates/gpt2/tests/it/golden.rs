//! The golden vectors of whole models, computed in float64 by transformers, PEFT and torch (tests/golden/README.md).

use crate::common::{expected, golden, model, tokens};
use fused_lora_gpt2::adapter::bottleneck::{Bottleneck, Kind};
use fused_lora_gpt2::{Adapters, Checkpoint, Forward, LoraMode, MergedTensor, Model, merge_folder, peft};
use half::{bf16, f16};

fn logits<W: fused_lora::Element>(model: &Model<W>, adapters: &Adapters<W>) -> Vec<f32> {
    let tokens = tokens();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    Forward::new().logits(model, adapters, &tokens).unwrap().to_vec()
}

fn assert_close(got: &[f32], key: &str, tolerance: f64, what: &str) {
    let expected = expected(key);
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(&expected).map(|(&g, e)| (f64::from(g) - e).abs()).fold(0.0, |worst, error| {
        // A NaN counts as an infinite difference.
        if error <= worst { worst } else { error }
    });
    assert!(worst <= tolerance, "{key}, {what}: off by {worst:e} > {tolerance:e}");
}

#[test]
fn base_model() {
    assert_close(&logits(&model(), &Adapters::default()), "base.logits", 1e-4, "f32");
}

#[test]
fn hidden_state() {
    let tokens = tokens();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let hidden = Forward::new().hidden(&model(), &Adapters::default(), &tokens).unwrap().to_vec();
    assert_close(&hidden, "base.hidden", 1e-4, "f32");
}

#[test]
fn lora_in_every_mode_and_merged() {
    let model = model();
    for name in ["lora-attn", "lora-all"] {
        let key = format!("{name}.logits");
        let lora = peft::load_lora(&golden(name), &model.config).unwrap();
        for mode in [LoraMode::Fused, LoraMode::Sequential, LoraMode::DenseDelta] {
            let adapters = Adapters { lora: Some(lora.clone()), mode, ..Adapters::default() };
            assert_close(&logits(&model, &adapters), &key, 1e-4, &format!("{mode:?}"));
        }
        let merged = model.merged(&lora).unwrap();
        assert_close(&logits(&merged, &Adapters::default()), &key, 1e-4, "merged");
        // The adapter changes the logits, so the comparison above would find an ignored adapter.
        let base = expected("base.logits");
        let adapted = expected(&key);
        assert!(base.iter().zip(&adapted).any(|(b, a)| (b - a).abs() > 0.1));
    }
}

#[test]
fn prefix() {
    let model = model();
    let adapters = peft::load(&golden("prefix"), &model.config).unwrap();
    assert_close(&logits(&model, &adapters), "prefix.logits", 1e-4, "f32");
}

#[test]
fn bottleneck_adapters_with_and_without_drop() {
    let model = model();
    for (kind, name) in [(Kind::Houlsby, "houlsby"), (Kind::Lin, "lin"), (Kind::Pfeiffer, "pfeiffer")] {
        let path = golden(&format!("adapter-{name}/adapter.safetensors"));
        let mut bottleneck = Bottleneck::load(&path, kind, &model.config).unwrap();
        for (drop, key) in [(0, format!("adapter-{name}.logits")), (1, format!("adapter-{name}.drop1.logits"))] {
            bottleneck.drop_lowest(drop);
            let adapters = Adapters { bottleneck: Some(bottleneck.clone()), ..Adapters::default() };
            assert_close(&logits(&model, &adapters), &key, 1e-4, "f32");
        }
    }
}

/// Weights stored in 16 bits give the logits of the same rounded weights stored as f32.
fn stored_in<W: fused_lora::Element>() {
    let place = tempfile::tempdir().unwrap();
    let rounded = place.path().join("rounded");
    merge_folder(&golden("model"), &[], &rounded, Some(W::DTYPE)).unwrap();
    let narrow = Model::<W>::load(&rounded).unwrap();
    let wide = Model::<f32>::load(&rounded).unwrap();
    let got = logits(&narrow, &Adapters::default());
    let same = logits(&wide, &Adapters::default());
    let worst = got.iter().zip(&same).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-4, "{}: off by {worst:e}", W::DTYPE);

    // Compared with unrounded weights, with an adapter, the difference is only that of rounding.
    let lora = peft::load_lora(&golden("lora-all"), &narrow.config).unwrap();
    let adapters = Adapters { lora: Some(lora), ..Adapters::default() };
    let tolerance = 200.0 * W::DTYPE.unit_roundoff();
    assert_close(&logits(&narrow, &adapters), "lora-all.logits", tolerance, &W::DTYPE.to_string());
}

#[test]
fn weights_stored_in_16_bits() {
    stored_in::<f16>();
    stored_in::<bf16>();
}

#[test]
fn merged_weights_agree_with_peft() {
    let model = model();
    let lora = peft::load_lora(&golden("lora-attn"), &model.config).unwrap();
    let merged = model.merged(&lora).unwrap();
    let expected = expected("lora-attn.merged.h.0.attn.c_attn.weight");
    for (got, exact) in merged.layers[0].projections[0].weight.iter().zip(&expected) {
        assert!((f64::from(*got) - exact).abs() <= exact.abs() * 2f64.powi(-24) + 1e-15, "{got} {exact}");
    }
}

#[test]
fn a_merged_folder_has_the_logits_of_the_adapter() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("merged");
    let (model_folder, adapter) = (golden("model"), golden("lora-all"));
    let report = merge_folder(&model_folder, &[&adapter], &out, None).unwrap();
    assert_eq!(report.tensors.len(), 8, "two layers with four projections each");
    let precise = |t: &MergedTensor| t.largest_rounding > 0.0 && t.largest_rounding < 1e-6 && t.largest_change > 1e-3;
    assert!(report.tensors.iter().all(precise));
    let merged = Model::<f32>::load(&out).unwrap();
    assert_close(&logits(&merged, &Adapters::default()), "lora-all.logits", 1e-4, "merged folder");

    let again = merge_folder(&model_folder, &[&adapter], &out, None).unwrap_err();
    assert!(again.to_string().contains("already exists"), "{again}");

    let half = place.path().join("half");
    let report = merge_folder(&model_folder, &[&adapter], &half, Some(fused_lora::DType::Bf16)).unwrap();
    assert!(report.tensors.iter().all(|t| t.largest_rounding > 1e-5), "{report:?}");
    let stored = Checkpoint::open(&half.join("model.safetensors")).unwrap();
    assert_eq!(stored.raw("transformer.wte.weight").unwrap().0, safetensors::Dtype::BF16);
    assert!(std::fs::read_to_string(half.join("config.json")).unwrap().contains("\"bfloat16\""));
    let leftovers = std::fs::read_dir(place.path()).unwrap().count();
    assert_eq!(leftovers, 2, "only the two results");
}
