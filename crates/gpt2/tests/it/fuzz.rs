//! Randomly damaged files: loading gives a model that runs or an error of one line, never a panic, and never an
//! allocation much larger than the file.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Folder, bottleneck, config, golden, model};
use fused_lora_gpt2::adapter::bottleneck::Kind;
use fused_lora_gpt2::adapter::lora::Projection;
use fused_lora_gpt2::{Adapters, Error, Forward, Model, Result, merge_folder, peft};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

/// Far more than the largest golden file needs, and far less than a damaged size could ask for.
const ALLOCATION_LIMIT: usize = 64 << 20;

/// An allocator that records the largest allocation of watched threads. Other tests of this program run on other
/// threads.
struct WatchedAllocator;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
}

fn record(size: usize) {
    if IS_WATCHED.get() {
        LARGEST.fetch_max(size, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for WatchedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        record(layout.size());
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        record(layout.size());
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        record(new_size);
        // SAFETY: `pointer` came from `System` with this layout, and the caller's promises about `new_size` are those
        // that `System` asks for.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: WatchedAllocator = WatchedAllocator;

/// Runs a test on watched threads, its parallel work included.
fn on_watched_threads(test: impl FnOnce() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().start_handler(|_| IS_WATCHED.set(true)).build().unwrap();
    pool.install(test);
}

static MODEL: LazyLock<Model<f32>> = LazyLock::new(model);

/// A golden folder, and a function that loads and runs such a folder.
type Subject = (&'static str, fn(&Path) -> Result<()>);
const SUBJECTS: [Subject; 7] = [
    ("model", use_model),
    ("lora-all", use_lora),
    ("lora-attn", use_lora),
    ("prefix", |folder| use_adapters(&peft::load(folder, &config())?)),
    ("adapter-houlsby", |folder| use_bottleneck(folder, Kind::Houlsby)),
    ("adapter-lin", |folder| use_bottleneck(folder, Kind::Lin)),
    ("adapter-pfeiffer", |folder| use_bottleneck(folder, Kind::Pfeiffer)),
];

fn use_model(folder: &Path) -> Result<()> {
    let temporary = tempfile::tempdir().unwrap();
    let merged = merge_folder(folder, &[], &temporary.path().join("merged"), None);
    let model = Model::<f32>::load(folder);
    assert_eq!(merged.is_ok(), model.is_ok(), "merging accepts what loading accepts");
    let model = model?;
    let logits = Forward::new().logits(&model, &Adapters::default(), &[&[0, 1, 2]])?.len();
    assert_eq!(logits, 3 * model.config.vocabulary);
    let adapters: Adapters<f32> = peft::load(&golden("lora-all"), &model.config)?;
    Forward::new().logits(&model, &adapters, &[&[0, 1, 2]]).map(drop)
}

fn use_lora(folder: &Path) -> Result<()> {
    let lora = peft::load_lora(folder, &MODEL.config)?;
    lora.check(&MODEL.config).unwrap();
    for layer in 0..MODEL.config.layers {
        for projection in Projection::ALL {
            lora.segments(layer, projection).unwrap();
        }
    }
    // A merged weight may overflow f32, which is an error.
    if let Err(error) = MODEL.merged(&lora) {
        assert!(matches!(error, Error::Layer { .. }), "{error}");
    }
    use_adapters(&Adapters { lora: Some(lora), ..Adapters::default() })
}

fn use_bottleneck(folder: &Path, kind: Kind) -> Result<()> {
    let bottleneck = Some(bottleneck(&folder.join("adapter.safetensors"), kind)?);
    use_adapters(&Adapters { bottleneck, ..Adapters::default() })
}

fn use_adapters(adapters: &Adapters<f32>) -> Result<()> {
    adapters.check(&MODEL.config).unwrap();
    let logits = Forward::new().logits(&MODEL, adapters, &[&[0, 1, 2]]).unwrap().len();
    assert_eq!(logits, 3 * MODEL.config.vocabulary);
    Ok(())
}

/// A position in a file.
#[derive(Debug, Clone)]
struct Position {
    in_header: bool,
    index: Index,
}

impl Position {
    /// An index within the header of a safetensors file, or anywhere in the file.
    fn of(&self, bytes: &[u8]) -> usize {
        let header = bytes.first_chunk().map_or(0, |n| u64::from_le_bytes(*n).min(1 << 20) as usize + 8);
        self.index.index(if self.in_header { header.clamp(1, bytes.len()) } else { bytes.len() })
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Truncate(Index),
    Overwrite(Vec<(Position, u8)>),
    Insert(Position, Vec<u8>),
    Delete(Position, usize),
}

impl Damage {
    fn apply(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Damage::Truncate(len) => bytes.truncate(len.index(bytes.len())),
            Damage::Overwrite(changes) => changes.iter().for_each(|(position, byte)| {
                let at = position.of(&bytes);
                bytes[at] = *byte;
            }),
            Damage::Insert(position, new) => {
                let at = position.of(&bytes);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Delete(position, count) => {
                let at = position.of(&bytes);
                bytes.drain(at..bytes.len().min(at + count));
            }
        }
        bytes
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    // Bytes that have a meaning in a header get further into the parser than random ones.
    let byte = || prop_oneof![any::<u8>(), select(&b"0123456789\"{}[]:,.\\ -eu_FIBhnt"[..])];
    let position = || (any::<bool>(), any::<Index>()).prop_map(|(in_header, index)| Position { in_header, index });
    prop_oneof![
        1 => any::<Index>().prop_map(Damage::Truncate),
        4 => prop::collection::vec((position(), byte()), 1..6).prop_map(Damage::Overwrite),
        2 => (position(), prop::collection::vec(byte(), 1..9)).prop_map(|(position, new)| Damage::Insert(position, new)),
        2 => (position(), 1usize..9).prop_map(|(position, count)| Damage::Delete(position, count)),
    ]
}

/// Runs the cases, and checks that some of them are accepted and some refused.
fn run_cases<S: Strategy>(name: &str, cases: u32, strategy: &S, case: impl Fn(S::Value) -> Result<()>) {
    let (accepted, refused) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(strategy, |value| {
        match case(value) {
            Ok(()) => accepted.set(accepted.get() + 1),
            Err(error) => {
                refused.set(refused.get() + 1);
                let text = error.to_string();
                prop_assert_eq!(text.lines().count(), 1, "{}", text);
                prop_assert!(!text.chars().any(char::is_control), "{:?}", text);
            }
        }
        let largest = LARGEST.load(Ordering::Relaxed);
        prop_assert!(largest < ALLOCATION_LIMIT, "an allocation of {} bytes", largest);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{name}: {failure}"));
    let (accepted, refused) = (accepted.get(), refused.get());
    assert!(accepted > 0 && refused > 0, "{name}: {accepted} accepted, {refused} refused");
}

#[test]
fn damaged_tensor_files() {
    on_watched_threads(|| {
        for (name, subject) in SUBJECTS {
            let whole = std::fs::read(Folder::of(name).weights()).unwrap();
            run_cases(name, 192, &damage(), |damage| {
                let folder = Folder::of(name);
                std::fs::write(folder.weights(), damage.apply(whole.clone())).unwrap();
                subject(folder.path())
            });
        }
    });
}

#[test]
fn damaged_json_files() {
    on_watched_threads(|| {
        for (name, subject) in SUBJECTS.into_iter().filter(|(name, _)| !name.starts_with("adapter-")) {
            let whole = std::fs::read(Folder::of(name).json()).unwrap();
            run_cases(name, 192, &damage(), |damage| {
                let folder = Folder::of(name);
                std::fs::write(folder.json(), damage.apply(whole.clone())).unwrap();
                subject(folder.path())
            });
        }
    });
}

fn any_json() -> impl Strategy<Value = Value> {
    let numbers = [json!(0), json!(-1), json!(1), json!(2), json!(4), json!(8), json!(64), json!(131), json!(513)];
    let huge = [json!(1u64 << 31), json!((1u64 << 31) + 1), json!(u64::MAX), json!(i64::MIN), json!(1e300)];
    let tiny = [json!(1e-5), json!(5e-324), json!(-0.0), json!(0.5)];
    let words = ["", "LORA", "PREFIX_TUNING", "gpt2", "relu", "none", "c_attn", "mlp.c_proj", "(", ".*", "a\nb"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        select([&numbers[..], &huge, &tiny].concat()),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(words.to_vec()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let names = select(&["c_attn", "mlp.c_proj", ".*", "h.0.attn.c_attn", "(", "a{1000}{1000}", "\n"][..]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names, inner), 0..4).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
            }),
        ]
    })
}

#[test]
fn fields_that_hold_anything() {
    on_watched_threads(|| {
        for (name, subject) in SUBJECTS.into_iter().filter(|(name, _)| !name.starts_with("adapter-")) {
            let whole: Map<String, Value> =
                serde_json::from_slice(&std::fs::read(Folder::of(name).json()).unwrap()).unwrap();
            let mut names: Vec<String> = whole.keys().cloned().collect();
            names.extend(["something_new", "two\nlines", "n_ctx", "dtype"].map(String::from));
            let changes = prop::collection::vec((select(names), any_json()), 1..3);
            run_cases(name, 384, &changes, |changes| {
                let folder = Folder::of(name);
                changes.into_iter().for_each(|(field, value)| folder.set(&field, Some(value)));
                subject(folder.path())
            });
        }
    });
}
