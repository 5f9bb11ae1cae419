//! LoRA on the CPU: q and v of a fused qkv projection adapted, first unmerged, then merged into the weight.
//!
//!     cargo run --release --example 1_cpu_layer

mod shared;

use fused_lora::lora::{Layout, LoraLinear, Segment, Weight};
use fused_lora::{MatrixMut, Result, cpu, reference};
use shared::{largest_error, matrix, random};

const TOKENS: usize = 16;
const D: usize = 64;
const RANK: usize = 8;

pub(crate) fn main() -> Result<()> {
    let x = random::<f32>(1, TOKENS * D);
    let (mut w0, bias) = (random::<f32>(2, 3 * D * D), random::<f32>(3, 3 * D));
    let [q_a, v_a] = [4, 5].map(|seed| random::<f32>(seed, RANK * D));
    let [q_b, v_b] = [6, 7].map(|seed| random::<f32>(seed, D * RANK));

    // One segment for each range of columns that has an adapter. k, in the middle, has none.
    let scale = 16.0 / RANK as f32;
    let segments = [
        Segment { columns: 0..D, a: matrix(&q_a, RANK, D), b: matrix(&q_b, D, RANK), scale },
        Segment { columns: 2 * D..3 * D, a: matrix(&v_a, RANK, D), b: matrix(&v_b, D, RANK), scale },
    ];
    let weight = Weight::out_in(matrix(&w0, 3 * D, D)); // [d_out, d_in], as torch.nn.Linear stores it
    let layer = LoraLinear { weight, bias: Some(&bias), segments: &segments };
    let expected = reference::forward(&layer, matrix(&x, TOKENS, D));

    let plan = layer.plan_forward::<f32>(TOKENS)?;
    let mut workspace = vec![0.0; plan.workspace_len()]; // keep it from call to call
    let mut y = vec![0.0; TOKENS * 3 * D];
    cpu::forward(&layer, matrix(&x, TOKENS, D), &mut MatrixMut::new(&mut y, TOKENS, 3 * D)?, &mut workspace)?;
    let steps = D + RANK + 4;
    let unmerged = largest_error(&expected, &y, steps);

    cpu::merge(&mut MatrixMut::new(&mut w0, 3 * D, D)?, Layout::OutIn, &segments)?;
    let merged = LoraLinear::base(Weight::out_in(matrix(&w0, 3 * D, D)), Some(&bias));
    cpu::forward(&merged, matrix(&x, TOKENS, D), &mut MatrixMut::new(&mut y, TOKENS, 3 * D)?, &mut workspace)?;
    let merged = largest_error(&expected, &y, steps);

    println!(
        "{TOKENS} tokens, rank {RANK} on q and v of {D} to {}: the largest error against float64 is {unmerged:.3} of its \
         bound unmerged, {merged:.3} merged",
        3 * D
    );
    assert!(unmerged <= 1.0 && merged <= 1.0);
    Ok(())
}
