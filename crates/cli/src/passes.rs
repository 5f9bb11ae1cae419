//! Passes through whole models that are timed or counted against each other: on the CPU, on a GPU, on the emulator.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use fused_lora::Element;
use fused_lora::device::{Device, DeviceKind, Event, Stream};
use fused_lora_gpt2::device::{Cache, DeviceAdapters, DeviceForward, DeviceModel, PassShape};
use fused_lora_gpt2::{Forward, Model};
use serde::Serialize;

use crate::column::{Column, random_tokens};
use crate::common::On;
use crate::method::{Kind, Prepared};

/// How a pass's launches reach the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// One by one.
    Eager,
    /// All at once, captured before.
    Graph,
}

/// What a pass is, whatever the method.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) column: Column,
    /// One token a sequence, of which the column's tokens are those before and it.
    pub(crate) decode: bool,
    pub(crate) logits: bool,
    /// On a device: whether launches may begin before the one ahead has ended, and how they get there.
    pub(crate) dependent: bool,
    pub(crate) modes: Vec<Mode>,
    pub(crate) seed: u64,
}

/// What is known of a contestant without a clock.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Facts {
    pub(crate) launches: usize,
    pub(crate) launches_per_layer: usize,
    /// Weights, adapters, activations, workspace and cache.
    pub(crate) device_bytes: usize,
}

/// One pass's time in milliseconds: on a GPU the device's own, and beside it the host's until everything was issued.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    pub(crate) ms: f64,
    pub(crate) host_ms: f64,
}

/// What passes run on, with what stays from column to column.
pub(crate) enum Engine<W> {
    Cpu(Box<Forward<W>>),
    Device { stream: Stream, base: Rc<DeviceModel<W>> },
}

impl<W: Element> Engine<W> {
    pub(crate) fn start(on: On, base: &Model<W>) -> Result<Self> {
        if on == On::Cpu {
            return Ok(Self::Cpu(Box::new(Forward::new())));
        }
        let device = on.open()?;
        let stream = Stream::new(&device)?;
        let base = Rc::new(DeviceModel::upload(&stream, base).context("the weights")?);
        Ok(Self::Device { stream, base })
    }

    /// The device, unless it is the CPU.
    pub(crate) fn device(&self) -> Option<&Device> {
        match self {
            Self::Cpu(_) => None,
            Self::Device { stream, .. } => Some(stream.device()),
        }
    }

    /// Everyone that is prepared, ready to run in every mode: contestant `i` is `prepared[i / modes]` in mode `i % modes`.
    pub(crate) fn contest<'a>(&'a mut self, prepared: &'a [Prepared<W>], setting: &Setting) -> Result<Contest<'a, W>> {
        let Setting { column, decode, logits, seed, .. } = *setting;
        let vocabulary = prepared.first().map_or(1, |p| p.model.config.vocabulary);
        let ids = random_tokens(seed, Column { tokens: if decode { 1 } else { column.tokens }, ..column }, vocabulary)?;
        match self {
            Self::Cpu(_) if decode => bail!("--decode keeps keys and values on a device: --device cuda or emulator"),
            Self::Cpu(_) if prepared.iter().any(|p| p.method.kind == Kind::LoraSlot) => {
                bail!("lora-slot finds its factors in a device's memory: --device cuda or emulator")
            }
            Self::Cpu(forward) => Ok(Contest::Cpu { forward, prepared, ids, batch: column.batch, logits }),
            Self::Device { stream, base } => {
                let contestant = |p: &Prepared<W>| {
                    let contestant = Contestant::new(stream, base, p, setting, &ids);
                    contestant.with_context(|| p.method.to_string())
                };
                let contestants = prepared.iter().map(contestant).collect::<Result<_>>()?;
                let events = [Event::new(stream.device())?, Event::new(stream.device())?];
                Ok(Contest::Device { stream, contestants, modes: setting.modes.clone(), events })
            }
        }
    }
}

/// Contestants of one column.
pub(crate) enum Contest<'a, W> {
    Cpu { forward: &'a mut Forward<W>, prepared: &'a [Prepared<W>], ids: Vec<u32>, batch: usize, logits: bool },
    Device { stream: &'a Stream, contestants: Vec<Contestant<W>>, modes: Vec<Mode>, events: [Event; 2] },
}

impl<W: Element> Contest<'_, W> {
    /// How many there are, each mode counted.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Cpu { prepared, .. } => prepared.len(),
            Self::Device { contestants, modes, .. } => contestants.len() * modes.len(),
        }
    }

    /// The method of a contestant, and how it is issued; nothing on the CPU.
    pub(crate) fn of(&self, i: usize) -> (usize, Option<Mode>) {
        match self {
            Self::Cpu { .. } => (i, None),
            Self::Device { modes, .. } => (i / modes.len(), Some(modes[i % modes.len()])),
        }
    }

    pub(crate) fn facts(&self, i: usize) -> Option<Facts> {
        match self {
            Self::Cpu { .. } => None,
            Self::Device { contestants, modes, .. } => Some(contestants[i / modes.len()].facts()),
        }
    }

    /// Runs one pass.
    pub(crate) fn run(&mut self, i: usize) -> Result<Time> {
        match self {
            Self::Cpu { forward, prepared, ids, batch, logits } => {
                let p = &prepared[i];
                let sequences: Vec<&[u32]> = ids.chunks(ids.len() / *batch).collect();
                let start = Instant::now();
                let result = match *logits {
                    true => forward.logits(&p.model, &p.adapters, &sequences),
                    false => forward.hidden(&p.model, &p.adapters, &sequences),
                };
                result.with_context(|| p.method.to_string())?;
                let ms = start.elapsed().as_secs_f64() * 1e3;
                Ok(Time { ms, host_ms: ms })
            }
            Self::Device { stream, contestants, modes, events } => {
                let contestant = &mut contestants[i / modes.len()];
                contestant.run(stream, modes[i % modes.len()], events).with_context(|| contestant.name.clone())
            }
        }
    }
}

/// One method on a device.
pub(crate) struct Contestant<W> {
    name: String,
    model: Rc<DeviceModel<W>>,
    adapters: DeviceAdapters<W>,
    forward: DeviceForward<W>,
    cache: Option<Cache<W>>,
}

impl<W: Element> Contestant<W> {
    fn new(
        stream: &Stream,
        base: &Rc<DeviceModel<W>>,
        prepared: &Prepared<W>,
        setting: &Setting,
        ids: &[u32],
    ) -> Result<Self> {
        let Setting { column, decode, logits, dependent, ref modes, .. } = *setting;
        let model = match prepared.method.kind {
            Kind::LoraMerged => Rc::new(DeviceModel::upload(stream, &prepared.model)?),
            _ => base.clone(),
        };
        let mut adapters = DeviceAdapters::upload(stream, &prepared.adapters, model.config())?;
        if prepared.method.kind == Kind::LoraSlot {
            adapters = adapters.swappable(stream)?;
        }
        let prefix = prepared.adapters.prefix.as_ref().map_or(0, |prefix| prefix.length());
        let before = prefix + column.tokens - 1;
        let mut cache = match decode {
            true => Some(Cache::new(stream, &model, column.batch, before + 1)?),
            false => None,
        };
        let shape = PassShape {
            sequences: column.batch,
            tokens: if decode { 1 } else { column.tokens },
            cache: cache.as_ref().map(Cache::capacity),
            continues: decode,
            logits,
            dependent,
        };
        let mut forward = DeviceForward::new(stream, &model, &adapters, shape)?;
        if let Some(cache) = &mut cache {
            cache.start(stream, &adapters)?;
            (0..column.batch).try_for_each(|sequence| cache.set_length(sequence, before))?;
        }
        let sequences: Vec<&[u32]> = ids.chunks(ids.len() / column.batch).collect();
        let of_cache = cache.as_ref().map(|cache| (cache, 0));
        forward.set_tokens(stream, &model, &adapters, &sequences, of_cache)?;
        if modes.contains(&Mode::Graph) {
            forward.capture(stream, &model, &adapters, cache.as_mut())?;
        }
        Ok(Self { name: prepared.method.to_string(), model, adapters, forward, cache })
    }

    fn facts(&self) -> Facts {
        let cache = self.cache.as_ref().map_or(0, Cache::bytes);
        Facts {
            launches: self.forward.launches(),
            launches_per_layer: self.forward.launches_per_layer(),
            device_bytes: self.model.bytes() + self.adapters.bytes() + self.forward.bytes() + cache,
        }
    }

    fn run(&mut self, stream: &Stream, mode: Mode, [start, end]: &[Event; 2]) -> Result<Time> {
        let Self { model, adapters, forward, cache, .. } = self;
        // Every pass puts its token in the same place, and reads whatever the cache holds: time does not depend on it.
        let mut issue = || match mode {
            Mode::Eager => forward.run(stream, model, adapters, cache.as_mut()),
            Mode::Graph => forward.replay(stream, cache.as_mut()),
        };
        // While the GPU is at this one, the host issues the one that is timed: so what it takes to launch a graph is not counted
        // as the graph's.
        if matches!(stream.device().properties().kind, DeviceKind::Cuda { .. }) {
            issue()?;
        }
        let host = Instant::now();
        start.record(stream)?;
        issue()?;
        end.record(stream)?;
        let host_ms = host.elapsed().as_secs_f64() * 1e3;
        Ok(Time { ms: f64::from(start.milliseconds_to(end)?), host_ms })
    }
}

/// The clocks of the first GPU, as its own tool tells them, such as `1980 MHz, memory 3201 MHz`.
pub(crate) fn clocks() -> Option<String> {
    let query = ["--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader", "--id=0"];
    let output = std::process::Command::new("nvidia-smi").args(query).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    text.trim().split_once(", ").map(|(sm, memory)| format!("{sm}, memory {memory}"))
}
