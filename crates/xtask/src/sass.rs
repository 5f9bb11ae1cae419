//! `cargo xtask sass`: compile every kernel for every target and check the machine code.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};

use crate::check::violations;
use crate::comparison::{self, Figures, compare};
use crate::disassembly;
use crate::report::{Report, Usage};
use crate::rules::Rules;
use crate::toolchain::{Toolchain, target};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Sources to check instead of all below kernels/.
    files: Vec<PathBuf>,
    /// Only this target; may be repeated.
    #[arg(long = "target", value_parser = parse_target)]
    targets: Vec<&'static str>,
    /// Write registers, shared bytes and instructions of every kernel to this file, as CSV.
    #[arg(long, value_name = "FILE.csv")]
    save: Option<PathBuf>,
    /// List the kernels whose registers, shared bytes or instructions differ from those in a file of --save; more registers or
    /// instructions than there are a failure.
    #[arg(long, value_name = "FILE.csv")]
    against: Option<PathBuf>,
    /// Take the machine code for this target from what `cargo xtask bundle --target` has just compiled.
    #[arg(long, value_name = "TARGET", value_parser = parse_target)]
    compiled: Option<&'static str>,
    /// Compilations at the same time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
}

/// clap shows an error's first line only, so the chain is flattened.
fn parse_target(name: &str) -> Result<&'static str, String> {
    target(name).map_err(|error| format!("{error:#}"))
}

/// A source and what its comments demand.
struct Source {
    path: PathBuf,
    rules: Rules,
}

/// One compilation.
#[derive(Clone, Copy)]
struct Job<'a> {
    source: &'a Source,
    target: &'static str,
}

/// What the bundle's build compiled for one target.
struct Compiled {
    target: &'static str,
    folder: PathBuf,
}

impl Compiled {
    fn find(root: &Path, target: &'static str) -> Result<Self> {
        let build = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let folder = build.join("for-bundle/images").join(target);
        ensure!(folder.is_dir(), "no {}: run `cargo xtask bundle --target {target}`", folder.display());
        Ok(Self { target, folder })
    }

    /// What ptxas said of a source, and its machine code. Both must be newer than everything below kernels/.
    fn of(&self, root: &Path, source: &Path) -> Result<(String, PathBuf)> {
        let kernels = root.join("kernels");
        let name = source.strip_prefix(&kernels)?.to_string_lossy().replace('/', "-");
        let stem = self.folder.join(name);
        let (report, image) = (stem.with_extension("ptxas"), stem.with_extension("fatbin"));
        let made = std::fs::metadata(&report).and_then(|file| file.modified());
        let made = made.with_context(|| format!("cannot read {}", report.display()))?;
        ensure!(
            made >= newest(&kernels)?,
            "{} is older than kernels/: run `cargo xtask bundle --target {}`",
            image.display(),
            self.target
        );
        Ok((std::fs::read_to_string(&report).with_context(|| report.display().to_string())?, image))
    }
}

/// When a file below a folder was last changed.
fn newest(folder: &Path) -> Result<SystemTime> {
    let mut latest = SystemTime::UNIX_EPOCH;
    for entry in folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let changed =
            if entry.file_type()?.is_dir() { newest(&entry.path())? } else { entry.metadata()?.modified()? };
        latest = latest.max(changed);
    }
    Ok(latest)
}

/// What came of one compilation.
struct Outcome<'a> {
    job: Job<'a>,
    kernels: Vec<Kernel>,
    /// Failures of the whole file, such as one that does not compile.
    failures: Vec<String>,
}

struct Kernel {
    name: String,
    usage: Usage,
    instructions: usize,
    violations: Vec<String>,
}

/// Runs the command; an error if anything violates a rule.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let toolchain = Toolchain::find(root)?;
    let sources = if args.files.is_empty() { find_sources(&root.join("kernels"))? } else { args.files.clone() };
    ensure!(!sources.is_empty(), "no kernels/**/*.cu");
    let sources = sources.into_iter().map(read_source).collect::<Result<Vec<_>>>()?;
    let wanted = |target: &&'static str| args.targets.is_empty() || args.targets.contains(target);
    let jobs: Vec<Job<'_>> = sources
        .iter()
        .flat_map(|source| source.rules.targets.iter().filter(|t| wanted(t)).map(move |&target| Job { source, target }))
        .collect();

    let compiled = args.compiled.map(|target| Compiled::find(root, target)).transpose()?;
    let outcomes = compile_all(root, &toolchain, compiled.as_ref(), &jobs, args.jobs)?;
    println!("{}", table(root, &outcomes));

    let mut failures: Vec<String> = outcomes.iter().flat_map(|outcome| describe(root, outcome)).collect();
    for source in &sources {
        let compiled: Vec<&Outcome<'_>> =
            outcomes.iter().filter(|outcome| std::ptr::eq(outcome.job.source, source)).collect();
        failures.extend(idle_rules(root, source, &compiled));
    }
    let figures = figures(&outcomes);
    if let Some(path) = &args.against {
        let (changed, grown) = compare(&comparison::read(path)?, &figures);
        println!("{changed}");
        failures.extend(grown);
    }
    if let Some(path) = &args.save {
        comparison::write(path, &figures)?;
    }
    if failures.is_empty() {
        return Ok(());
    }
    for failure in &failures {
        eprintln!("{failure}");
    }
    bail!("{} failure{}", failures.len(), if failures.len() == 1 { "" } else { "s" })
}

/// What every kernel takes on every target.
fn figures(outcomes: &[Outcome<'_>]) -> Vec<Figures> {
    let of = |outcome: &Outcome<'_>, kernel: &Kernel| Figures {
        kernel: kernel.name.clone(),
        target: outcome.job.target.to_owned(),
        registers: kernel.usage.registers,
        shared: kernel.usage.shared,
        instructions: kernel.instructions,
    };
    outcomes.iter().flat_map(|outcome| outcome.kernels.iter().map(move |kernel| of(outcome, kernel))).collect()
}

/// All `.cu` files below a folder, sorted.
fn find_sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![];
    for entry in folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(find_sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read_source(path: PathBuf) -> Result<Source> {
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules = Rules::parse(&text).with_context(|| path.display().to_string())?;
    Ok(Source { path, rules })
}

/// Compiles with so many at a time; the outcomes are in the order of the jobs.
fn compile_all<'a>(
    root: &Path,
    toolchain: &Toolchain,
    compiled: Option<&Compiled>,
    jobs: &[Job<'a>],
    parallel: u16,
) -> Result<Vec<Outcome<'a>>> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let queue = Mutex::new(jobs.iter().copied().enumerate());
    let work = || {
        let mut done = vec![];
        loop {
            // The guard must not outlive the statement, or the others would wait for this compilation.
            let next = queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
            let Some((index, job)) = next else { return done };
            let cubin = folder.path().join(format!("{index}.cubin"));
            done.push((index, compile(root, toolchain, compiled, job, &cubin)));
        }
    };
    let mut outcomes: Vec<(usize, Outcome<'a>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    ensure!(outcomes.len() == jobs.len(), "a compilation did not come to its end");
    outcomes.sort_by_key(|(index, _)| *index);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

/// One compilation. An error becomes a failure of the file, so that the others go on.
fn compile<'a>(
    root: &Path,
    toolchain: &Toolchain,
    compiled: Option<&Compiled>,
    job: Job<'a>,
    cubin: &Path,
) -> Outcome<'a> {
    let inspect = || -> Result<(Vec<Kernel>, Vec<String>)> {
        let (report, machine_code) = match compiled.filter(|compiled| compiled.target == job.target) {
            Some(compiled) => {
                let (report, image) = compiled.of(root, &job.source.path)?;
                (report, toolchain.disassemble(&image)?)
            }
            None => {
                let report = toolchain.compile(root, &job.source.path, job.target, cubin)?;
                (report, toolchain.disassemble(cubin)?)
            }
        };
        let (report, machine_code) = (Report::parse(&report)?, disassembly::parse(&machine_code)?);
        let mut warnings = report.warnings.clone();
        let mut kernels = vec![];
        for (name, code) in &machine_code {
            let usage = report.usage(name)?.clone();
            let mut violations = violations(name, job.target, &usage, code, &job.source.rules.rules);
            let quoted = format!("'{name}'");
            violations.extend(warnings.extract_if(.., |warning| warning.contains(&quoted)));
            kernels.push(Kernel { name: name.clone(), usage, instructions: code.count, violations });
        }
        Ok((kernels, warnings))
    };
    match inspect() {
        Ok((kernels, failures)) => Outcome { job, kernels, failures },
        Err(error) => Outcome { job, kernels: vec![], failures: vec![format!("{error:#}")] },
    }
}

/// The failures of one compilation, each with its place.
fn describe(root: &Path, outcome: &Outcome<'_>) -> Vec<String> {
    let place = format!("{} {}", shown(root, &outcome.job.source.path), outcome.job.target);
    let of_kernels = outcome
        .kernels
        .iter()
        .flat_map(|kernel| kernel.violations.iter().map(move |violation| format!("{}: {violation}", kernel.name)));
    outcome.failures.iter().cloned().chain(of_kernels).map(|text| format!("{place}: {text}")).collect()
}

/// Rules that hold for no kernel: a misspelt name would otherwise demand nothing for ever.
fn idle_rules(root: &Path, source: &Source, compiled: &[&Outcome<'_>]) -> Vec<String> {
    let applies_somewhere = |rule: &crate::rules::Rule| {
        compiled.iter().any(|outcome| outcome.kernels.iter().any(|k| rule.applies(&k.name, outcome.job.target)))
    };
    // A rule for targets that were not asked for, or did not compile, says nothing.
    let was_compiled = |rule: &crate::rules::Rule| {
        compiled.iter().any(|outcome| rule.targets.contains(&outcome.job.target) && !outcome.kernels.is_empty())
    };
    source
        .rules
        .rules
        .iter()
        .filter(|rule| was_compiled(rule) && !applies_somewhere(rule))
        .map(|rule| format!("{}:{}: no kernel is called {}", shown(root, &source.path), rule.line, rule.kernels.text))
        .collect()
}

fn table(root: &Path, outcomes: &[Outcome<'_>]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header([
        "kernel",
        "target",
        "registers",
        "shared",
        "instructions",
        "result",
    ]);
    for outcome in outcomes {
        if outcome.kernels.is_empty() {
            let file = shown(root, &outcome.job.source.path);
            let result = if outcome.failures.is_empty() { "no kernels" } else { "failed" };
            table.add_row([file.as_str(), outcome.job.target, "", "", "", result]);
        }
        for kernel in &outcome.kernels {
            let result = if kernel.violations.is_empty() { "ok" } else { "failed" };
            let Usage { registers, shared, .. } = kernel.usage;
            table.add_row([
                kernel.name.clone(),
                outcome.job.target.to_owned(),
                registers.to_string(),
                shared.to_string(),
                kernel.instructions.to_string(),
                result.to_owned(),
            ]);
        }
    }
    for column in table.column_iter_mut().skip(2).take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A path relative to the repository where it lies in it.
fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome<'a>(source: &'a Source, target: &'static str, kernel: &str) -> Outcome<'a> {
        let usage = Usage { registers: 32, ..Usage::default() };
        let kernels =
            vec![Kernel { name: kernel.to_owned(), usage, instructions: 8, violations: vec!["no HMMA".to_owned()] }];
        Outcome { job: Job { source, target }, kernels, failures: vec!["(C7510)".to_owned()] }
    }

    fn source(text: &str) -> Source {
        Source { path: "repository/kernels/file.cu".into(), rules: Rules::parse(text).unwrap() }
    }

    #[test]
    fn failures_say_where() {
        let source = source("");
        let lines = describe(Path::new("repository"), &outcome(&source, "sm_80", "k"));
        assert_eq!(lines, ["kernels/file.cu sm_80: (C7510)", "kernels/file.cu sm_80: k: no HMMA"]);
    }

    #[test]
    fn a_rule_for_no_kernel_is_a_failure() {
        let source = source("// sass: k has HMMA\n// sass: misspelt has HMMA\n// sass: misspelt has HMMA on sm_75\n");
        let compiled = outcome(&source, "sm_80", "k");
        let lines = idle_rules(Path::new("repository"), &source, &[&compiled]);
        assert_eq!(lines, ["kernels/file.cu:2: no kernel is called misspelt"]);
    }
}
