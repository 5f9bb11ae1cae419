//! What the examples share: random numbers, a device, and the comparison with the float64 reference.
#![allow(dead_code)] // no example needs all of it

use fused_lora::reference::Expected;
use fused_lora::{Element, MatrixRef};

/// The first GPU, or the emulator of one where there is no driver or no GPU. `Device::properties` says which.
#[cfg(feature = "emulator")]
pub(crate) fn open_device() -> fused_lora::Result<fused_lora::device::Device> {
    use fused_lora::DriverError::{NoDevice, NotInstalled, TooOld};
    use fused_lora::Error;
    use fused_lora::device::{Device, EmulatorConfig};
    match Device::cuda(0) {
        Err(Error::Driver(NotInstalled { .. } | TooOld { .. } | NoDevice { .. })) => {
            Device::emulator(EmulatorConfig::default())
        }
        opened => opened,
    }
}

/// Numbers from -1 to 1, the same for the same seed (splitmix64).
pub(crate) fn random<T: Element>(seed: u64, len: usize) -> Vec<T> {
    let number = |i: u64| {
        let mut z = seed.wrapping_mul(0x1000_0001).wrapping_add(i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        T::from_f64(((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
    };
    (0..len as u64).map(number).collect()
}

/// The largest error of a matrix without gaps in parts of its bound: more than 1 is wrong, and so is a NaN. `steps` is
/// the number of additions in an element.
pub(crate) fn largest_error<T: Element>(expected: &Expected, got: &[T], steps: usize) -> f64 {
    assert_eq!(got.len(), expected.value.data.len());
    let parts = got.iter().enumerate().map(|(i, got)| {
        let error = (f64::from(got.to_f32()) - expected.value.data[i]).abs() / expected.bound(i, T::DTYPE, steps);
        if error.is_nan() { f64::INFINITY } else { error }
    });
    parts.fold(0.0, f64::max)
}

/// A matrix without gaps between its rows.
pub(crate) fn matrix<T>(data: &[T], rows: usize, cols: usize) -> MatrixRef<'_, T> {
    MatrixRef::new(data, rows, cols).expect("as many elements as the caller says")
}
