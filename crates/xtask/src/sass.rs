//! `cargo xtask sass`: compiles every kernel for every target and checks the machine code.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};

use crate::check::violations;
use crate::comparison::{self, KernelStats, compare};
use crate::disassembly;
use crate::ptxas::{PtxasReport, Usage};
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
    /// List the kernels whose registers, shared bytes or instructions differ from those in a file of --save; fail if a
    /// kernel has more registers or instructions.
    #[arg(long, value_name = "FILE.csv")]
    against: Option<PathBuf>,
    /// Take the machine code for this target from the last `cargo xtask bundle --target`, instead of compiling.
    #[arg(long, value_name = "TARGET", value_parser = parse_target)]
    compiled: Option<&'static str>,
    /// Number of compilations that run at the same time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
}

/// Puts an error and its causes into one line, because clap shows only the first line.
fn parse_target(name: &str) -> Result<&'static str, String> {
    target(name).map_err(|error| format!("{error:#}"))
}

/// A source file and the rules in its comments.
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

/// The machine code that `cargo xtask bundle` compiled for a target.
struct BundledImages {
    target: &'static str,
    folder: PathBuf,
}

impl BundledImages {
    fn find(root: &Path, target: &'static str) -> Result<Self> {
        let build = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let folder = build.join("for-bundle/images").join(target);
        ensure!(folder.is_dir(), "no {}: run `cargo xtask bundle --target {target}`", folder.display());
        Ok(Self { target, folder })
    }

    /// The output of ptxas for a source, and its machine code. They must be newer than all files below kernels/.
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

/// The last time that a file below a folder was changed.
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

/// The result of a compilation.
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

    let compiled = args.compiled.map(|target| BundledImages::find(root, target)).transpose()?;
    let outcomes = compile_all(root, &toolchain, compiled.as_ref(), &jobs, args.jobs)?;
    println!("{}", table(root, &outcomes));

    let mut failures: Vec<String> = outcomes.iter().flat_map(|outcome| describe(root, outcome)).collect();
    for source in &sources {
        let compiled: Vec<&Outcome<'_>> =
            outcomes.iter().filter(|outcome| std::ptr::eq(outcome.job.source, source)).collect();
        failures.extend(unmatched_rules(root, source, &compiled));
    }
    let stats = stats(&outcomes);
    if let Some(path) = &args.against {
        let (changed, grown) = compare(&comparison::read(path)?, &stats);
        println!("{changed}");
        failures.extend(grown);
    }
    if let Some(path) = &args.save {
        comparison::write(path, &stats)?;
    }
    if failures.is_empty() {
        return Ok(());
    }
    for failure in &failures {
        eprintln!("{failure}");
    }
    bail!("{} failure{}", failures.len(), if failures.len() == 1 { "" } else { "s" })
}

/// The resources of every kernel on every target.
fn stats(outcomes: &[Outcome<'_>]) -> Vec<KernelStats> {
    let of = |outcome: &Outcome<'_>, kernel: &Kernel| KernelStats {
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

/// Runs all jobs, `parallel` at a time. The outcomes are in the order of the jobs.
fn compile_all<'a>(
    root: &Path,
    toolchain: &Toolchain,
    compiled: Option<&BundledImages>,
    jobs: &[Job<'a>],
    parallel: u16,
) -> Result<Vec<Outcome<'a>>> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let queue = Mutex::new(jobs.iter().copied().enumerate());
    let work = || {
        let mut done = vec![];
        loop {
            // The lock is released at the end of this statement, so that other threads do not wait for this
            // compilation.
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
    ensure!(outcomes.len() == jobs.len(), "a compilation was not completed");
    outcomes.sort_by_key(|(index, _)| *index);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

/// Runs one compilation. An error is recorded as a failure of the file, so that other compilations continue.
fn compile<'a>(
    root: &Path,
    toolchain: &Toolchain,
    compiled: Option<&BundledImages>,
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
        let (report, machine_code) = (PtxasReport::parse(&report)?, disassembly::parse(&machine_code)?);
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

/// The failures of a compilation, each with its file and target.
fn describe(root: &Path, outcome: &Outcome<'_>) -> Vec<String> {
    let place = format!("{} {}", relative(root, &outcome.job.source.path), outcome.job.target);
    let of_kernels = outcome
        .kernels
        .iter()
        .flat_map(|kernel| kernel.violations.iter().map(move |violation| format!("{}: {violation}", kernel.name)));
    outcome.failures.iter().cloned().chain(of_kernels).map(|text| format!("{place}: {text}")).collect()
}

/// Rules that match no kernel. They are failures, because a misspelt name would never be noticed otherwise.
fn unmatched_rules(root: &Path, source: &Source, compiled: &[&Outcome<'_>]) -> Vec<String> {
    let applies_somewhere = |rule: &crate::rules::Rule| {
        compiled.iter().any(|outcome| outcome.kernels.iter().any(|k| rule.applies(&k.name, outcome.job.target)))
    };
    // Rules for targets that were not requested, or did not compile, are not checked.
    let was_compiled = |rule: &crate::rules::Rule| {
        compiled.iter().any(|outcome| rule.targets.contains(&outcome.job.target) && !outcome.kernels.is_empty())
    };
    source
        .rules
        .rules
        .iter()
        .filter(|rule| was_compiled(rule) && !applies_somewhere(rule))
        .map(|rule| {
            format!("{}:{}: no kernel is called {}", relative(root, &source.path), rule.line, rule.kernels.text)
        })
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
            let file = relative(root, &outcome.job.source.path);
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

/// A path, relative to the repository if it is inside it.
fn relative(root: &Path, path: &Path) -> String {
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
        let lines = unmatched_rules(Path::new("repository"), &source, &[&compiled]);
        assert_eq!(lines, ["kernels/file.cu:2: no kernel is called misspelt"]);
    }
}
