//! Reads the test vectors that PyTorch computed in float64 (tests/golden/README.md).

use safetensors::SafeTensors;

use super::Buffer;

/// The vectors of tests/golden.
pub struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    pub fn open() -> Self {
        // On a GPU host the tests come without the repository, and scripts/gpu.sh sets the path of the vectors.
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
        let folder = std::env::var_os("FUSED_LORA_TEST_GOLDEN").map_or_else(|| here.into(), std::path::PathBuf::from);
        Self { bytes: std::fs::read(folder.join("expected.safetensors")).unwrap() }
    }

    pub fn f64(&self, key: &str) -> (Vec<usize>, Vec<f64>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(key).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F64);
        let values = tensor.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        (tensor.shape().to_vec(), values)
    }

    /// An operand. Its float64 values are exact in f32.
    pub fn f32(&self, key: &str) -> Buffer<f32> {
        let (shape, values) = self.f64(key);
        let data: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        assert!(data.iter().zip(&values).all(|(&n, &w)| f64::from(n) == w), "{key} does not fit into f32");
        let cols = shape[shape.len() - 1];
        let rows = data.len() / cols;
        Buffer::contiguous(data, rows, cols)
    }

    /// Asserts that all errors are at most 1e-5 of the largest element. A NaN fails.
    pub fn assert_close(&self, got: &[f32], key: &str) {
        let (_, expected) = self.f64(key);
        assert_eq!(got.len(), expected.len(), "{key}");
        let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for (i, (&got, expected)) in got.iter().zip(&expected).enumerate() {
            let error = (f64::from(got) - expected).abs();
            assert!(error <= 1e-5 * largest, "{key}[{i}] is {got}, expected {expected}");
        }
    }
}
