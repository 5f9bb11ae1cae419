//! The kernels that a machine can launch, as source texts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use sha2::{Digest, Sha256};

include!(concat!(env!("OUT_DIR"), "/cpp_sources.rs"));

/// Sources and headers of CUDA kernels, and a function that says which source a kernel is in. Clones share the texts.
#[derive(Clone)]
pub struct Kernels {
    /// The files' texts, by path below the kernels' folder.
    files: Arc<BTreeMap<String, Arc<str>>>,
    /// Texts that replace those of some files, by path.
    changed: BTreeMap<String, Arc<str>>,
    source_of: Arc<SourceOf>,
}

type SourceOf = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Kernels {
    /// A set of files, by their paths below the folder that `#include <...>` starts from. `source_of` names the file
    /// (`.cu`) that a kernel is in.
    pub fn new<P: Into<String>, T: Into<Arc<str>>>(
        files: impl IntoIterator<Item = (P, T)>,
        source_of: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let files = files.into_iter().map(|(path, text)| (path.into(), text.into())).collect();
        Self { files: Arc::new(files), changed: BTreeMap::new(), source_of: Arc::new(source_of) }
    }

    /// The same kernels with the text of one file replaced, for tests that plant a bug and see it found. Such kernels
    /// are compiled without optimisation, because they run only once.
    #[must_use]
    pub fn with_file(&self, path: &str, text: impl Into<Arc<str>>) -> Self {
        let mut kernels = self.clone();
        kernels.changed.insert(path.to_owned(), text.into());
        kernels
    }

    /// The same files, with another function that names a kernel's source.
    #[must_use]
    pub fn with_source_of(&self, source_of: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self { source_of: Arc::new(source_of), ..self.clone() }
    }

    /// The text of a file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.changed.get(path).or_else(|| self.files.get(path)).map(|text| &**text)
    }

    /// The files that hold kernels, sorted.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str).filter(|path| path.ends_with(".cu"))
    }

    /// The file that a kernel is in.
    pub(crate) fn source_of(&self, kernel: &str) -> Option<String> {
        (self.source_of)(kernel).filter(|path| self.text(path).is_some())
    }

    /// Path and text of every file, without the replacements.
    pub(crate) fn originals(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.files.iter().map(|(path, text)| (path.as_str(), &**text))
    }

    /// Path and text of the replaced files.
    pub(crate) fn changed(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.changed.iter().map(|(path, text)| (path.as_str(), &**text))
    }

    /// A digest of all that a source is compiled from: its own text, the files that it includes, and `words`.
    pub(crate) fn digest(&self, source: &str, words: &[&str]) -> String {
        let mut hash = Hash::default();
        words.iter().for_each(|word| hash.add(word));
        let (mut seen, mut waiting) = (BTreeSet::new(), vec![source.to_owned()]);
        while let Some(path) = waiting.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let Some((path, text)) = self.find(&path) else { continue };
            hash.add(&path);
            hash.add(text);
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            waiting.extend(includes(text).map(|(name, beside)| match (beside, folder) {
                (true, "") | (false, _) => name.to_owned(),
                (true, folder) => format!("{folder}/{name}"),
            }));
        }
        hash.name()
    }

    /// The file that the compiler includes under this name: headers in `cpp/host` come before those of the kernels.
    fn find(&self, name: &str) -> Option<(String, &str)> {
        static CPP_FILES: LazyLock<BTreeMap<&str, &str>> = LazyLock::new(|| CPP_SOURCES.iter().copied().collect());
        let changed = self.changed.get(name).map(|text| (name.to_owned(), &**text));
        let in_cpp = |path: String| CPP_FILES.get(path.as_str()).map(|text| (path.clone(), *text));
        let own = || self.files.get(name).map(|text| (name.to_owned(), &**text));
        changed.or_else(|| in_cpp(format!("host/{name}"))).or_else(|| in_cpp(name.to_owned())).or_else(own)
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let changed: Vec<&String> = self.changed.keys().collect();
        f.debug_struct("Kernels").field("files", &self.files.len()).field("changed", &changed).finish_non_exhaustive()
    }
}

/// A digest of a sequence of texts. The lengths are hashed too, so moving a boundary changes the digest.
#[derive(Default)]
pub(crate) struct Hash(Sha256);

impl Hash {
    pub(crate) fn add(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
    }

    /// The digest's first 128 bits: enough to name a file, and short enough to read.
    pub(crate) fn name(self) -> String {
        self.0.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The names that a source includes, each with whether it is quoted: then the compiler looks beside the source first.
fn includes(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("#include "));
    lines.filter_map(|rest| {
        let close = match rest.chars().next()? {
            '<' => '>',
            quote @ '"' => quote,
            _ => return None,
        };
        rest[1..].split_once(close).map(|(name, _)| (name, close == '"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_changes_with_what_is_included_and_with_nothing_else() {
        let kernels = Kernels::new(
            [("a.cu", "#include <tile/a.h>\n"), ("tile/a.h", "#include \"b.h\"\n"), ("tile/b.h", "1"), ("c.h", "1")],
            |_| Some("a.cu".to_owned()),
        );
        let digest = kernels.digest("a.cu", &[]);
        assert_eq!(kernels.with_file("c.h", "2").digest("a.cu", &[]), digest);
        for path in ["a.cu", "tile/a.h", "tile/b.h"] {
            assert_ne!(kernels.with_file(path, "2").digest("a.cu", &[]), digest, "{path}");
        }
        assert_ne!(kernels.digest("a.cu", &["-O1"]), digest);
    }

    #[test]
    fn host_headers_replace_those_of_the_kernels() {
        let kernels = Kernels::new([("gpu/warp.h", "")], |_| None);
        assert_eq!(kernels.find("gpu/warp.h").unwrap().0, "host/gpu/warp.h");
        assert!(kernels.find("machine/runtime.h").is_some());
        assert_eq!(kernels.with_file("gpu/warp.h", "x").find("gpu/warp.h").unwrap().1, "x");
    }
}
