//! `cargo xtask unused`: checks that every declared dependency is used, and that the required ones are declared.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde::Deserialize;

/// Dependencies that the project must have.
const REQUIRED: [&str; 5] = ["cudarc", "bindgen", "half", "criterion", "approx"];

pub(crate) fn run(root: &Path) -> Result<()> {
    let problems = check(root, &REQUIRED)?;
    if problems.is_empty() {
        println!("every dependency is used");
        return Ok(());
    }
    let lines: Vec<String> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
    bail!("{} in the manifests:{}", lines.len(), lines.concat())
}

/// A problem with a dependency.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Problem {
    /// A crate declares it, but none of the sources that this kind of dependency is for names it.
    Unused { package: String, kind: Kind, name: String },
    /// The workspace's table has it, but no crate declares it.
    Undeclared { name: String },
    /// It is required, but no crate declares it.
    Missing { name: String },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unused { package, kind, name } => {
                write!(
                    f,
                    "{package} declares '{name}' under [{}] and does not use it in {}",
                    kind.table(),
                    kind.place()
                )
            }
            Self::Undeclared { name } => write!(f, "[workspace.dependencies] has '{name}', which no crate declares"),
            Self::Missing { name } => write!(f, "no crate declares '{name}', expected at least one"),
        }
    }
}

/// The kinds of dependencies, as in cargo's metadata, where a normal one has no kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Normal,
    Dev,
    Build,
}

impl Kind {
    fn table(self) -> &'static str {
        match self {
            Self::Normal => "dependencies",
            Self::Dev => "dev-dependencies",
            Self::Build => "build-dependencies",
        }
    }

    fn place(self) -> &'static str {
        match self {
            Self::Normal => "its library or programs",
            Self::Dev => "its tests, benchmarks or examples",
            Self::Build => "its build script",
        }
    }

    /// Whether a target of this kind, such as `lib` or `test`, is compiled with such a dependency and is meant to use
    /// it.
    fn is_for(self, target: &str) -> bool {
        match self {
            Self::Normal => !["test", "bench", "example", "custom-build"].contains(&target),
            // A library's unit tests are in its own sources.
            Self::Dev => target != "custom-build",
            Self::Build => target == "custom-build",
        }
    }
}

/// The part of `cargo metadata` that is read.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    rename: Option<String>,
    kind: Option<Kind>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

/// The part of the root manifest that `cargo metadata` leaves out.
#[derive(Deserialize)]
struct Manifest {
    workspace: Workspace,
}

#[derive(Deserialize)]
struct Workspace {
    #[serde(default)]
    dependencies: toml::Table,
}

/// All problems of the workspace at `root`, sorted.
fn check(root: &Path, required: &[&str]) -> Result<BTreeSet<Problem>> {
    let packages = metadata(root)?.packages;
    let mut problems = BTreeSet::new();
    for package in &packages {
        for dependency in &package.dependencies {
            let kind = dependency.kind.unwrap_or_default();
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name);
            if !package.uses(name, kind)? {
                problems.insert(Problem::Unused { package: package.name.clone(), kind, name: name.clone() });
            }
        }
    }
    let declared: BTreeSet<&str> = packages
        .iter()
        .flat_map(|package| &package.dependencies)
        .flat_map(|dependency| [Some(dependency.name.as_str()), dependency.rename.as_deref()])
        .flatten()
        .collect();
    let path = root.join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest = toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
    let table = manifest.workspace.dependencies.into_iter().map(|(name, _)| name);
    problems.extend(table.filter(|name| !declared.contains(name.as_str())).map(|name| Problem::Undeclared { name }));
    let missing = required.iter().filter(|name| !declared.contains(**name));
    problems.extend(missing.map(|name| Problem::Missing { name: (*name).to_owned() }));
    Ok(problems)
}

fn metadata(root: &Path) -> Result<Metadata> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(root)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("cannot read the output of cargo metadata")
}

impl Package {
    /// Whether a source that this kind of dependency is for names the crate `dependency`.
    fn uses(&self, dependency: &str, kind: Kind) -> Result<bool> {
        let mention = mention(&dependency.replace('-', "_"))?;
        for target in self.targets.iter().filter(|target| target.kind.iter().any(|of| kind.is_for(of))) {
            // Modules are in the folder of a target's main file or below it; a build script is searched alone.
            let is_script = target.kind.iter().any(|kind| kind == "custom-build");
            let place = if is_script { None } else { target.src_path.parent() };
            if mentioned(place.unwrap_or(&target.src_path), &mention)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Matches a crate's name at the start of a path, or where the crate itself is imported.
fn mention(name: &str) -> Result<Regex> {
    let pattern = format!(r"(?:^|[^\w:]){name}\s*::|\b(?:use|extern\s+crate)\s+{name}\b");
    Regex::new(&pattern).with_context(|| format!("cannot search for '{name}'"))
}

/// Whether a Rust source, or any in a folder, has a match outside comments.
fn mentioned(place: &Path, mention: &Regex) -> Result<bool> {
    let unreadable = || format!("cannot read {}", place.display());
    if place.is_dir() {
        for entry in fs::read_dir(place).with_context(unreadable)? {
            if mentioned(&entry.with_context(unreadable)?.path(), mention)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    if place.extension().is_none_or(|extension| extension != "rs") {
        return Ok(false);
    }
    let text = fs::read_to_string(place).with_context(unreadable)?;
    Ok(text.lines().any(|line| mention.is_match(line.split("//").next().unwrap_or(line))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace with a package at its root and one more crate. `cargo metadata` does not look for the dependencies.
    fn workspace(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn problems(files: &[(&str, &str)], required: &[&str]) -> Vec<String> {
        let root = workspace(files);
        check(root.path(), required).unwrap().iter().map(Problem::to_string).collect()
    }

    const ROOT: &str = r#"
        [workspace]
        members = ["inner"]
        [workspace.dependencies]
        plain = "1"
        left-over = "1"
        [package]
        name = "outer"
        [dependencies]
        plain.workspace = true
        other = { package = "renamed", version = "1" }
        [dev-dependencies]
        for-tests = "1"
        [build-dependencies]
        for-build = "1"
    "#;
    const INNER: &str = "[package]\nname = \"inner\"\n[dependencies]\nsome-thing = \"1\"\n";

    #[test]
    fn used_dependencies_are_not_reported() {
        let files = [
            ("Cargo.toml", &*ROOT.replace("left-over = \"1\"", "")),
            ("build.rs", "fn main() { for_build::run(); }"),
            ("src/lib.rs", "mod deep;\nuse other as renamed;"),
            ("src/deep/mod.rs", "type A = std::option::Option<plain::B>;"),
            ("tests/common/mod.rs", "use for_tests :: {Case};"),
            ("tests/all.rs", "mod common;"),
            ("inner/Cargo.toml", INNER),
            ("inner/src/main.rs", "use some_thing::Thing;"),
        ];
        assert_eq!(problems(&files, &["plain", "renamed"]), [""; 0]);
    }

    #[test]
    fn unused_dependencies_are_reported() {
        let files = [
            ("Cargo.toml", ROOT),
            // Names that do not count: in a source of another kind, in a comment, as part of another name or of a
            // longer path.
            ("build.rs", "fn main() { plain::run(); }"),
            ("src/lib.rs", "// for_build::run()\nuse crate::other::A;\nfn f() { not_plain::run() }"),
            ("tests/all.rs", "use plain::A; use for_tests_too::B;"),
            ("inner/Cargo.toml", INNER),
            ("inner/src/main.rs", "const NAME: &str = \"some_thing\";"),
        ];
        assert_eq!(
            problems(&files, &["plain", "absent"]),
            [
                "inner declares 'some-thing' under [dependencies] and does not use it in its library or programs",
                "outer declares 'other' under [dependencies] and does not use it in its library or programs",
                "outer declares 'plain' under [dependencies] and does not use it in its library or programs",
                "outer declares 'for-tests' under [dev-dependencies] and does not use it in its tests, benchmarks or examples",
                "outer declares 'for-build' under [build-dependencies] and does not use it in its build script",
                "[workspace.dependencies] has 'left-over', which no crate declares",
                "no crate declares 'absent', expected at least one",
            ]
        );
    }
}
