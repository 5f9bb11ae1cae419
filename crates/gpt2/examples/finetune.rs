//! Trains a LoRA on a small random GPT-2 until it continues a repeating sequence:
//!
//!     cargo run --release --package fused-lora-gpt2 --example finetune

use fused_lora::lora::Activation;
use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
use fused_lora_gpt2::train::{AdamW, Optimizer, Training};
use fused_lora_gpt2::{Adapters, Config, Forward, Model, Result};

const PERIOD: [u32; 7] = [3, 14, 15, 9, 26, 53, 58];
const BATCH: usize = 4;
const SEQUENCE: usize = 64;
const STEPS: usize = 100;

fn main() -> Result<()> {
    let config = Config {
        layers: 4,
        d_model: 256,
        heads: 4,
        d_ff: 1024,
        vocabulary: 64,
        positions: 128,
        layer_norm_epsilon: 1e-5,
        activation: Activation::GeluNew,
        scale_attention: true,
        scale_attention_by_layer: false,
    };
    let model = Model::<f32>::random(&config, 1)?;
    let targets = [Projection::Qkv, Projection::AttnOut, Projection::Fc, Projection::MlpOut];
    let targets = targets.map(|projection| (Target::Whole(projection), 8));
    let lora = Lora::untrained(&config, &targets, 16.0, 2)?;
    let mut adapters = Adapters { lora: Some(lora), ..Adapters::default() };
    println!("{} parameters, {} of them trained", config.parameters(), adapters.parameters());

    // Each sequence starts at another position in the period.
    let token = |b: usize, t: usize| PERIOD[(2 * b + t) % PERIOD.len()];
    let tokens: Vec<Vec<u32>> = (0..BATCH).map(|b| (0..SEQUENCE).map(|t| token(b, t)).collect()).collect();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();

    let mut training = Training::new(&model, &adapters, BATCH, SEQUENCE)?;
    let rates = AdamW { lr: 1e-3, lora_plus_ratio: 4.0, max_norm: Some(1.0), ..AdamW::default() };
    let mut optimizer = Optimizer::new(&adapters, rates)?;
    for i in 0..=STEPS {
        let loss = training.loss_and_gradients(&adapters, &tokens)?;
        let step = optimizer.step(&mut adapters, training.gradients())?;
        if i % 10 == 0 {
            println!("step {i:3}: loss {loss:.4}, gradient norm {:.4}", step.norm);
        }
    }

    let mut forward = Forward::new();
    let mut sequence = PERIOD[..3].to_vec();
    for _ in 0..11 {
        let logits = forward.logits(&model, &adapters, &[&sequence])?;
        let last = &logits[logits.len() - config.vocabulary..];
        let best = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
        sequence.push(best as u32);
    }
    println!("continued: {sequence:?}");
    Ok(())
}
