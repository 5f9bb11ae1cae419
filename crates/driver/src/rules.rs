//! The rules that every call is held to. `README.md` lists them; each has a test that breaks it.

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The driver's number of the error.
    pub(crate) code: u32,
    /// What was wrong.
    pub(crate) text: String,
    /// The rule that the call broke. `None`: the call was right and failed for another reason, as calls do.
    pub(crate) rule: Option<Rule>,
}

pub(crate) type Outcome<T = ()> = Result<T, Refusal>;

/// A failure of a call that broke no rule.
pub(crate) fn refused<T>(code: u32, text: impl Into<String>) -> Outcome<T> {
    Err(Refusal { code, text: text.into(), rule: None })
}

macro_rules! rules {
    ($($name:ident $code:literal $sentence:literal;)*) => {
        /// What a caller must do, or must not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Rule {
            $(#[doc = $sentence] $name,)*
        }

        impl Rule {
            /// All rules.
            pub const ALL: &[Rule] = &[$(Rule::$name),*];

            /// The name, which begins every message about the rule.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$name => stringify!($name),)* }
            }

            /// The rule in a sentence.
            pub fn sentence(self) -> &'static str {
                match self { $(Rule::$name => $sentence,)* }
            }

            /// The number of the driver's error for a call that breaks the rule.
            pub fn code(self) -> u32 {
                match self { $(Rule::$name => $code,)* }
            }
        }
    };
}

rules! {
    Initialised 3 "cuInit comes before every other call but those about errors and versions.";
    NoInitFlags 1 "cuInit takes no flags.";
    ResultPointer 1 "A pointer to a result is not null and is aligned.";
    Ordinal 101 "A device's number is below the number of devices.";
    KnownAttribute 1 "An attribute is one that this driver knows.";
    CurrentContext 201 "A context is current in the calling thread, and one that is made current was retained.";
    LiveHandle 400 "A handle is of the kind that the call takes and has not been destroyed.";
    OwnContext 400 "Handles belong to the current context.";
    SomeBytes 1 "An allocation or a copy is of at least one byte, and its host pointer is not null.";
    LiveMemory 1 "An address of device memory lies in a live allocation of the current context, and so do all bytes of the range.";
    WholeAllocation 1 "What is freed is the address of a live allocation, not one inside it.";
    KeptForGraph 1 "Memory whose address a graph or a running capture holds is not freed.";
    DisjointCopy 1 "The two ranges of a copy do not overlap.";
    StreamFlags 1 "A stream's flags are CU_STREAM_DEFAULT or CU_STREAM_NON_BLOCKING.";
    EventFlags 1 "An event's flags are CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING or none.";
    NoFlags 1 "A call that takes flags and defines none that are used here gets 0.";
    RecordedEvent 400 "Only a recorded event is waited for by the host or timed.";
    TimedEvent 400 "Only events that were created with timing are timed.";
    CapturedEvent 907 "An event that was recorded in a capture is waited for only in that capture, and is neither queried nor timed.";
    SafeInCapture 900 "Calls that a capture forbids are made in the relaxed mode: by a thread that captures, unless the capture is relaxed, and by every thread in the global mode while another one captures in that mode.";
    WaitOutsideCapture 900 "The host does not wait for a stream that is being captured.";
    NoImplicitCapture 906 "The default stream is not used while a stream that is ordered with it is being captured.";
    CaptureStream 900 "The default stream is not captured.";
    CaptureOnce 401 "A stream that is being captured does not begin another capture.";
    CaptureMode 1 "A capture's mode is global, thread-local or relaxed.";
    CaptureRunning 401 "A capture that is ended has begun.";
    CaptureOrigin 903 "A capture ends on the stream that it began on.";
    CaptureThread 908 "A capture that is not relaxed ends on the thread that it began on.";
    CaptureJoined 904 "Every stream that joined a capture is waited for before the capture ends.";
    CaptureIsolated 905 "A stream that is being captured does not wait for work outside of its capture.";
    CapturesApart 902 "Two captures do not wait for each other.";
    CaptureValid 901 "A capture in which a call failed is ended and not used.";
    CaptureDevice 900 "Copies from and to the host are not captured, because the host's memory may be gone at the replay.";
    StreamAtRest 400 "A stream that is being captured is not destroyed.";
    Image 200 "An image is a fatbin, a cubin or PTX, whole and aligned to 8 bytes.";
    SameSources 200 "A kernel in an image takes as many bytes of parameters as the source that this driver was built with.";
    FunctionLimit 1 "A function's dynamic shared memory is set to no more than a block can have beside the static shared memory.";
    GridSize 1 "A grid has from 1 to 2^31 - 1 blocks in x, and from 1 to 65535 in y and z.";
    BlockSize 1 "A block has from 1 to 1024 threads, and no more than the kernel was compiled for.";
    BlockRegisters 701 "The registers of a block's threads are no more than an SM has.";
    SharedLimit 1 "A launch asks for no more dynamic shared memory than the function was set to, at first 48 KiB less the static shared memory.";
    ClusterSize 912 "A cluster has from 1 to 8 blocks and divides the grid, and a question about clusters says their size.";
    ClusterDevice 1 "Only devices of compute capability 9.0 and later have clusters.";
    DependentDevice 801 "Only devices of compute capability 9.0 and later start a dependent launch early.";
    LaunchAttribute 1 "A launch's attributes are those that this driver knows, each once, with padding of zeros.";
    LaunchParameters 1 "A launch gets a pointer for each parameter, none of which is null, and nothing in `extra`.";
    Ordered 719 "Operations that access the same memory, one of which writes it, are ordered by streams, events or waits of the host.";
    MapPlace 1 "A tensor map is written to an address that is a multiple of 64.";
    MapDevice 801 "Only devices of compute capability 9.0 and later take tensor maps.";
    MapElement 1 "A tensor map's data type and fill are among those that are defined, and NaN fills floating-point types only.";
    MapRank 1 "A tensor map has from 1 to 5 dimensions, each of 1 to 2^32 elements.";
    MapAddress 1 "A tensor map's address is a multiple of 16, and its tensor lies in one live allocation.";
    MapStride 1 "A tensor map's strides are multiples of 16 below 2^40, each at least as long as what it steps over.";
    MapBox 1 "A tensor map's box has from 1 to 256 elements in each dimension, no more than 128 KiB in all, and rows of a multiple of 16 bytes.";
    MapElementStride 1 "A tensor map's element strides are from 1 to 8.";
    MapSwizzle 1 "A box's row is no longer than the span of the swizzle.";
    MapInterleave 1 "A tensor map is not interleaved, and its L2 promotion is one of those that are defined.";
}

impl Rule {
    /// Whether a careful caller may leave it to the driver to find that the rule is broken, because the error does no harm
    /// and only the driver knows: such a call does not end the process.
    pub fn may_be_left_to_the_driver(self) -> bool {
        use Rule::{CaptureIsolated, CaptureJoined, CaptureValid, CapturedEvent, CapturesApart, Ordinal};
        matches!(self, CaptureIsolated | CaptureJoined | CaptureValid | CapturedEvent | CapturesApart | Ordinal)
    }

    /// A refusal of a call that breaks this rule; `text` says how.
    pub(crate) fn broken<T>(self, text: impl AsRef<str>) -> Outcome<T> {
        let here = if text.as_ref().is_empty() { "" } else { " Here: " };
        let text = format!("{}: {}{here}{}", self.name(), self.sentence(), text.as_ref());
        Err(Refusal { code: self.code(), text, rule: Some(self) })
    }

    /// Success if `holds`.
    pub(crate) fn expect(self, holds: bool, text: impl FnOnce() -> String) -> Outcome {
        if holds { Ok(()) } else { self.broken(text()) }
    }
}
