//! `linear.*` of the golden vectors: LoRA layers and their gradients as PyTorch computes them in float64
//! (tests/golden/README.md).
#![allow(clippy::unwrap_used)]

use crate::common::Buffer;
use crate::common::golden::Golden;
use fused_lora::cpu::{self, Accumulate, SegmentGradient, SequentialBuffers};
use fused_lora::lora::{Epilogue, LoraLinear, Segment, Weight};
use fused_lora::{MatrixRef, reference};

#[test]
fn linear_layers_and_their_gradients() {
    let golden = Golden::open();
    for case in ["a", "b", "c"] {
        let key = |name: &str| format!("linear.{case}.{name}");
        let [x, w, a, b, bias, dy] = ["x", "W", "A", "B", "bias", "dy"].map(|name| golden.f32(&key(name)));
        let alpha = golden.f64(&key("alpha")).1[0];
        let (tokens, d_in, d_out, rank) = (x.rows, x.cols, w.rows, a.rows);
        let segments = [Segment { columns: 0..d_out, a: a.view(), b: b.view(), scale: (alpha / rank as f64) as f32 }];
        let turned: Vec<f32> = (0..d_in * d_out).map(|i| w.data[i % d_out * d_in + i / d_out]).collect();
        let layouts = [Weight::out_in(w.view()), Weight::in_out(MatrixRef::new(&turned, d_in, d_out).unwrap())];
        for weight in layouts {
            let layer = LoraLinear { weight, bias: Some(&bias.data), segments: &segments };
            let mut workspace = vec![f32::NAN; layer.plan_forward::<f32>(tokens).unwrap().workspace_len()];
            let mut y = Buffer::<f32>::poisoned(tokens, d_out, 0);
            let mut t = vec![f32::NAN; tokens * rank];
            let plain = Epilogue::default();
            cpu::forward_with(&layer, x.view(), &mut y.view_mut(), &plain, Some(&mut t), &mut workspace).unwrap();
            golden.assert_close(&y.data, &key("y"));
            let mut buffers = SequentialBuffers::new();
            cpu::forward_sequential(&layer, x.view(), &mut y.view_mut(), &plain, &mut buffers).unwrap();
            golden.assert_close(&y.data, &key("y"));

            let [mut dx, mut da, mut db] =
                [(tokens, d_in), (rank, d_in), (d_out, rank)].map(|(rows, cols)| Buffer::poisoned(rows, cols, 0));
            let mut workspace = vec![f32::NAN; cpu::backward_workspace_len::<f32, f32>(&layer, tokens).unwrap()];
            cpu::backward(
                &layer,
                x.view(),
                dy.view(),
                &t,
                Some(&mut dx.view_mut()),
                &mut [SegmentGradient { da: da.view_mut(), db: db.view_mut() }],
                Accumulate::Overwrite,
                &mut workspace,
            )
            .unwrap();
            golden.assert_close(&dx.data, &key("dx"));
            golden.assert_close(&da.data, &key("dA"));
            golden.assert_close(&db.data, &key("dB"));

            // The oracle that judges everything else is judged here, by PyTorch.
            let oracle = reference::forward(&layer, x.view());
            let gradients = reference::backward(&layer, x.view(), dy.view());
            let exact = [("y", &oracle), ("dx", &gradients.dx), ("dA", &gradients.da[0]), ("dB", &gradients.db[0])];
            for (name, judged) in exact {
                let (_, expected) = golden.f64(&key(name));
                // s is rounded to f32 in the layer and not in PyTorch.
                let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                let close = |(got, exact): (&f64, &f64)| (got - exact).abs() <= 1e-7 * largest;
                assert!(judged.value.data.iter().zip(&expected).all(close), "{} of the oracle", key(name));
            }
        }
    }
}
