//! Loops that are compiled for several sets of vector instructions. Which of them runs is decided at run time.

/// Runs `f`, compiled for the vector instructions of the machine. Functions that are inlined into `f` use them too.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    struct Call<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Call<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Call(f))
}
