//! How a call arrives and how its result leaves.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::rules::{Outcome, Refusal, Rule};
use crate::state;

/// `CUDA_ERROR_UNKNOWN`: an error of this driver itself.
const UNKNOWN: u32 = 999;

/// Calls that have ended something even if they return an error, as NVIDIA's driver does.
const ENDING: [&str; 6] =
    ["cuStreamEndCapture", "cuStreamDestroy", "cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy", "cuMemFree"];

static VIOLATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Races that the thread's call has found.
    static RACES: RefCell<Vec<String>> = const { RefCell::new(vec![]) };
    /// The thread's last error, for `cuGetErrorString`.
    static LAST: RefCell<Option<(u32, String)>> = const { RefCell::new(None) };
}

/// Defines functions of the driver. A call passes through the alterations that tests have asked for.
macro_rules! driver_functions {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            /// As the driver API requires: pointers are null or to live values.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, unused_variables, unused_mut, unused_assignments)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
                use $crate::alter::Word;
                let mut words = [$(<$type as Word>::to_word($argument)),*];
                $crate::entry::answer(stringify!($name), &[$(stringify!($argument)),*], &mut words, |words| {
                    let mut at = 0;
                    $(
                        let $argument = <$type as Word>::from_word(words[at]);
                        at += 1;
                    )*
                    $body
                })
            }
        )*
    };
}

pub(crate) use driver_functions;

/// Runs a call's body unless the call was altered, and turns its outcome into the driver's number.
pub(crate) fn answer(
    call: &'static str,
    names: &[&str],
    words: &mut [u64],
    body: impl FnOnce(&[u64]) -> Outcome,
) -> u32 {
    state::read_environment();
    match crate::alter::arrive(call, names, words) {
        crate::alter::Arrival::Runs => {}
        crate::alter::Arrival::Skipped => return 0,
        crate::alter::Arrival::Fails(code) => {
            if call == "cuStreamEndCapture" {
                // So that the call ends the capture and gives no graph.
                state::lock().captures.invalidate_of(words[0] as usize);
            }
            if ENDING.iter().any(|ending| call.starts_with(ending)) {
                let _ = catch_unwind(AssertUnwindSafe(|| body(words)));
                tell_races(call);
            }
            let text = "as $FUSED_LORA_DRIVER asks for".to_owned();
            return report(call, Refusal { code, text, rule: None });
        }
    }
    // A panic must not pass through the caller's C interface.
    let outcome = catch_unwind(AssertUnwindSafe(|| body(words)));
    tell_races(call);
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(refusal)) => report(call, refusal),
        Err(_) => report(call, Refusal { code: UNKNOWN, text: "the stand-in driver panicked".into(), rule: None }),
    }
}

fn report(call: &str, refusal: Refusal) -> u32 {
    tell(call, &refusal);
    LAST.set(Some((refusal.code, format!("{call}: {}", refusal.text))));
    refusal.code
}

/// Says that a call broke a rule, and ends the process unless the caller asked for errors instead.
fn tell(call: &str, refusal: &Refusal) {
    if refusal.rule.is_none_or(Rule::may_be_left_to_the_driver) {
        return;
    }
    VIOLATIONS.fetch_add(1, Ordering::Relaxed);
    eprintln!("stand-in driver: {call}: {}", refusal.text);
    if state::aborts() {
        std::process::abort();
    }
}

/// A race does no harm to this driver, so the call that has found it goes on.
fn tell_races(call: &str) {
    for race in RACES.take() {
        let broken: Outcome = Rule::Ordered.broken(race);
        broken.unwrap_or_else(|refusal| tell(call, &refusal));
    }
}

/// Keeps races until the call ends: they are told when nothing is locked.
pub(crate) fn note_races(races: &mut Vec<String>) {
    RACES.with_borrow_mut(|noted| noted.append(races));
}

/// Calls that have broken a rule so far.
pub(crate) fn violations() -> u64 {
    VIOLATIONS.load(Ordering::Relaxed)
}

/// A text that lives as long as the process, as the driver's do.
fn kept(text: &str) -> *const c_char {
    static KEPT: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    let with_zero = String::from_utf8_lossy(text.as_bytes_with_nul()).into_owned();
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = kept.get(with_zero.as_str()) {
        return text.as_ptr().cast();
    }
    let text: &'static str = Box::leak(with_zero.into_boxed_str());
    kept.insert(text);
    text.as_ptr().cast()
}

/// The name of an error.
pub(crate) fn name_of(code: u32) -> Option<*const c_char> {
    let name = match code {
        0 => "CUDA_SUCCESS",
        1 => "CUDA_ERROR_INVALID_VALUE",
        2 => "CUDA_ERROR_OUT_OF_MEMORY",
        3 => "CUDA_ERROR_NOT_INITIALIZED",
        101 => "CUDA_ERROR_INVALID_DEVICE",
        200 => "CUDA_ERROR_INVALID_IMAGE",
        201 => "CUDA_ERROR_INVALID_CONTEXT",
        209 => "CUDA_ERROR_NO_BINARY_FOR_GPU",
        221 => "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
        223 => "CUDA_ERROR_JIT_COMPILATION_DISABLED",
        400 => "CUDA_ERROR_INVALID_HANDLE",
        401 => "CUDA_ERROR_ILLEGAL_STATE",
        500 => "CUDA_ERROR_NOT_FOUND",
        600 => "CUDA_ERROR_NOT_READY",
        700 => "CUDA_ERROR_ILLEGAL_ADDRESS",
        701 => "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        702 => "CUDA_ERROR_LAUNCH_TIMEOUT",
        716 => "CUDA_ERROR_MISALIGNED_ADDRESS",
        719 => "CUDA_ERROR_LAUNCH_FAILED",
        801 => "CUDA_ERROR_NOT_SUPPORTED",
        900 => "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        901 => "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        902 => "CUDA_ERROR_STREAM_CAPTURE_MERGE",
        903 => "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
        904 => "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
        905 => "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
        906 => "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
        907 => "CUDA_ERROR_CAPTURED_EVENT",
        908 => "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
        912 => "CUDA_ERROR_INVALID_CLUSTER_SIZE",
        999 => "CUDA_ERROR_UNKNOWN",
        _ => return None,
    };
    Some(kept(name))
}

/// The text of the thread's last error with this number; otherwise the error's name.
pub(crate) fn text_of(code: u32) -> Option<*const c_char> {
    LAST.with_borrow(|last| match last {
        Some((last, text)) if *last == code => Some(kept(text)),
        _ => name_of(code),
    })
}

/// Writes a result.
///
/// # Safety
/// The pointer is null, misaligned or to a place that may be written.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    Rule::ResultPointer.expect(!to.is_null() && to.is_aligned(), || format!("{to:p} is."))?;
    // SAFETY: the caller's promise, and checked above.
    unsafe { to.write(value) };
    Ok(())
}
