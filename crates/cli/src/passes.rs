//! Runs forward passes of whole models with different adapters, to compare them on the CPU, on a GPU or on the
//! emulator.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use fused_lora::Element;
use fused_lora::device::{Device, DeviceKind, Event, Stream};
use fused_lora_gpt2::device::{Cache, DeviceAdapters, DeviceForward, DeviceModel, PassShape};
use fused_lora_gpt2::{Forward, Model};
use serde::Serialize;

use crate::column::{Column, random_tokens};
use crate::common::Backend;
use crate::method::{Kind, Prepared};

/// How the launches of a pass are issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// One by one.
    Eager,
    /// As one captured graph.
    Graph,
}

/// What all methods of a comparison have in common.
#[derive(Debug, Clone)]
pub(crate) struct PassConfig {
    pub(crate) column: Column,
    /// Whether a pass computes one token of each sequence; the column's tokens are then its context and itself.
    pub(crate) decode: bool,
    pub(crate) logits: bool,
    /// On a device, whether a launch may begin before the preceding one has ended.
    pub(crate) dependent: bool,
    /// On a device, the ways to issue launches that are compared.
    pub(crate) modes: Vec<Mode>,
    pub(crate) seed: u64,
}

/// The costs of a pass that are known without measuring.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StaticCosts {
    pub(crate) launches: usize,
    pub(crate) launches_per_layer: usize,
    /// Weights, adapters, activations, workspace and cache.
    pub(crate) device_bytes: usize,
}

/// The time of a pass in milliseconds: on a GPU the device's, and the time that the host took to issue it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    pub(crate) ms: f64,
    pub(crate) host_ms: f64,
}

/// Runs passes, and keeps what all columns share.
pub(crate) enum Executor<W> {
    Cpu(Box<Forward<W>>),
    Device { stream: Stream, base: Rc<DeviceModel<W>> },
}

impl<W: Element> Executor<W> {
    pub(crate) fn start(backend: Backend, base: &Model<W>) -> Result<Self> {
        if backend == Backend::Cpu {
            return Ok(Self::Cpu(Box::new(Forward::new())));
        }
        let device = backend.open()?;
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

    /// Sets up a pass of every prepared model in every mode: pass `i` is `prepared[i / modes]` in mode `i % modes`.
    pub(crate) fn compare<'a>(
        &'a mut self,
        prepared: &'a [Prepared<W>],
        setting: &PassConfig,
    ) -> Result<Comparison<'a, W>> {
        let PassConfig { column, decode, logits, seed, .. } = *setting;
        let vocabulary = prepared.first().map_or(1, |p| p.model.config.vocabulary);
        let ids = random_tokens(seed, Column { tokens: if decode { 1 } else { column.tokens }, ..column }, vocabulary)?;
        match self {
            Self::Cpu(_) if decode => bail!("--decode needs a device for its KV cache: --device cuda or emulator"),
            Self::Cpu(_) if prepared.iter().any(|p| p.method.kind == Kind::LoraSlot) => {
                bail!("lora-slot needs device memory: --device cuda or emulator")
            }
            Self::Cpu(forward) => Ok(Comparison::Cpu { forward, prepared, ids, batch: column.batch, logits }),
            Self::Device { stream, base } => {
                let pass = |p: &Prepared<W>| {
                    let pass = DevicePass::new(stream, base, p, setting, &ids);
                    pass.with_context(|| p.method.to_string())
                };
                let passes = prepared.iter().map(pass).collect::<Result<_>>()?;
                let events = [Event::new(stream.device())?, Event::new(stream.device())?];
                Ok(Comparison::Device { stream, passes, modes: setting.modes.clone(), events })
            }
        }
    }
}

/// The passes that are compared in one column.
pub(crate) enum Comparison<'a, W> {
    Cpu { forward: &'a mut Forward<W>, prepared: &'a [Prepared<W>], ids: Vec<u32>, batch: usize, logits: bool },
    Device { stream: &'a Stream, passes: Vec<DevicePass<W>>, modes: Vec<Mode>, events: [Event; 2] },
}

impl<W: Element> Comparison<'_, W> {
    /// The number of passes, each mode counted.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Cpu { prepared, .. } => prepared.len(),
            Self::Device { passes, modes, .. } => passes.len() * modes.len(),
        }
    }

    /// The index of a pass's method, and its mode; `None` on the CPU.
    pub(crate) fn method_and_mode(&self, i: usize) -> (usize, Option<Mode>) {
        match self {
            Self::Cpu { .. } => (i, None),
            Self::Device { modes, .. } => (i / modes.len(), Some(modes[i % modes.len()])),
        }
    }

    pub(crate) fn static_costs(&self, i: usize) -> Option<StaticCosts> {
        match self {
            Self::Cpu { .. } => None,
            Self::Device { passes, modes, .. } => Some(passes[i / modes.len()].static_costs()),
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
            Self::Device { stream, passes, modes, events } => {
                let pass = &mut passes[i / modes.len()];
                pass.run(stream, modes[i % modes.len()], events).with_context(|| pass.name.clone())
            }
        }
    }
}

/// The passes of one method on a device.
pub(crate) struct DevicePass<W> {
    name: String,
    model: Rc<DeviceModel<W>>,
    adapters: DeviceAdapters<W>,
    forward: DeviceForward<W>,
    cache: Option<Cache<W>>,
}

impl<W: Element> DevicePass<W> {
    fn new(
        stream: &Stream,
        base: &Rc<DeviceModel<W>>,
        prepared: &Prepared<W>,
        setting: &PassConfig,
        ids: &[u32],
    ) -> Result<Self> {
        let PassConfig { column, decode, logits, dependent, ref modes, .. } = *setting;
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

    fn static_costs(&self) -> StaticCosts {
        let cache = self.cache.as_ref().map_or(0, Cache::bytes);
        StaticCosts {
            launches: self.forward.launches(),
            launches_per_layer: self.forward.launches_per_layer(),
            device_bytes: self.model.bytes() + self.adapters.bytes() + self.forward.bytes() + cache,
        }
    }

    fn run(&mut self, stream: &Stream, mode: Mode, [start, end]: &[Event; 2]) -> Result<Time> {
        let Self { model, adapters, forward, cache, .. } = self;
        // Every pass writes to the same position of the cache and reads what happens to be there: times do not depend
        // on it.
        let mut issue = || match mode {
            Mode::Eager => forward.run(stream, model, adapters, cache.as_mut()),
            Mode::Graph => forward.replay(stream, cache.as_mut()),
        };
        // The host issues the timed pass while the GPU still runs this one, so the time to launch a graph is not
        // counted.
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

/// The clocks of the first GPU according to nvidia-smi, such as `1980 MHz, memory 3201 MHz`.
pub(crate) fn clocks() -> Option<String> {
    let query = ["--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader", "--id=0"];
    let output = std::process::Command::new("nvidia-smi").args(query).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    text.trim().split_once(", ").map(|(sm, memory)| format!("{sm}, memory {memory}"))
}
