//! The order of work that uses memory which launches update atomically: tickets, flags, arrivals.
//!
//! Such memory has an [`Order`]. Work on one stream runs in order anyway. When another stream uses the memory, that
//! stream first waits for the work that the last stream had been issued by then. A captured launch uses the memory when
//! its graph is replayed, so the graph keeps the orders and each replay is a use; within the capture, the launches of
//! several streams are ordered among themselves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::device::backend::Handle;
use crate::device::launch::stream::{Event, Stream};
use crate::error::{Error, Result};

/// The stream that used some memory last.
#[derive(Debug, Default)]
pub(crate) struct Order(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Stream>,
    /// Made when another stream uses the memory for the first time.
    event: Option<Event>,
}

/// The captures of a device that are in progress.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    /// Read while work is issued that has an order, written while a stream begins, joins or ends a capture, so that no
    /// stream does so between the look and the launch.
    list: RwLock<Vec<InProgress>>,
    /// The length of the list, for calls that only have work to do while there is a capture.
    len: AtomicUsize,
}

#[derive(Debug)]
struct InProgress {
    id: u64,
    uses: Mutex<Vec<Use>>,
}

/// Memory that a capture uses, and the stream of the capture that did so last.
#[derive(Debug)]
struct Use {
    order: Arc<Order>,
    last: Stream,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is whole after each statement, so a panic under a lock leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Makes `stream` wait for the work that was issued to `last`. Both run eagerly, or belong to one capture.
    fn wait_for(event: &mut Option<Event>, last: &Stream, stream: &Stream) -> Result<()> {
        let event = match event {
            Some(event) => event,
            None => event.insert(Event::untimed(stream.device())?),
        };
        event.record(last)?;
        stream.wait_for(event)
    }
}

impl Order {
    /// Issues work to a stream that uses the memory, after all work that used it before. The memory's other users are
    /// kept out until `work` returns. The stream must be of the memory's device.
    pub(crate) fn issue<R>(self: &Arc<Self>, stream: &Stream, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut state = lock(&self.0);
        let captures = stream.device().captures().read();
        self.put_in_order(&mut state, &captures, stream)?;
        work()
    }

    /// As [`issue`](Self::issue), for the memory of several orders, [sorted](Self::sort).
    pub(crate) fn issue_all<R>(orders: &[Arc<Self>], stream: &Stream, work: impl FnOnce() -> Result<R>) -> Result<R> {
        if let [order] = orders {
            return order.issue(stream, work);
        }
        let mut states: Vec<_> = orders.iter().map(|order| lock(&order.0)).collect();
        let captures = stream.device().captures().read();
        for (order, state) in orders.iter().zip(&mut states) {
            order.put_in_order(state, &captures, stream)?;
        }
        work()
    }

    /// Sorts orders as every thread locks them.
    fn sort(orders: &mut [Arc<Self>]) {
        orders.sort_by_key(Arc::as_ptr);
    }

    fn put_in_order(self: &Arc<Self>, state: &mut State, captures: &[InProgress], stream: &Stream) -> Result<()> {
        if !captures.is_empty()
            && let Some(id) = stream.capture_id()?
            && let Some(capture) = captures.iter().find(|capture| capture.id == id)
        {
            return capture.put_in_order(self, state, stream);
        }
        let Some(last) = &state.last else {
            state.last = Some(stream.share());
            return Ok(());
        };
        if last.handle() == stream.handle() {
            return Ok(());
        }
        if stream.capture_id()?.is_some() {
            // The stream's owner captures. Nothing runs now, and the owner promised to order the replays.
            return Ok(());
        }
        match last.capture_id()? {
            None => State::wait_for(&mut state.event, last, stream)?,
            Some(id) => last.wait_for_what_came_before_capture(id, stream)?,
        }
        state.last = Some(stream.share());
        Ok(())
    }
}

impl InProgress {
    fn put_in_order(&self, order: &Arc<Order>, state: &mut State, stream: &Stream) -> Result<()> {
        let mut uses = lock(&self.uses);
        match uses.iter_mut().find(|used| Arc::ptr_eq(&used.order, order)) {
            None => uses.push(Use { order: Arc::clone(order), last: stream.share() }),
            Some(used) if used.last.handle() != stream.handle() => {
                State::wait_for(&mut state.event, &used.last, stream)?;
                used.last = stream.share();
            }
            Some(_) => {}
        }
        Ok(())
    }
}

impl Captures {
    fn read(&self) -> RwLockReadGuard<'_, Vec<InProgress>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<InProgress>> {
        self.list.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, list: &mut Vec<InProgress>, id: u64) -> Vec<Use> {
        let at = list.iter().position(|capture| capture.id == id);
        let removed = at.map(|at| list.swap_remove(at));
        self.len.store(list.len(), Ordering::Release);
        removed.map(|capture| capture.uses.into_inner().unwrap_or_else(PoisonError::into_inner)).unwrap_or_default()
    }

    /// Performs a wait by which a stream may join a capture. What was issued to the stream before it joins can still be
    /// waited for.
    pub(super) fn joining(&self, stream: &Stream, wait: impl FnOnce() -> Result<()>) -> Result<()> {
        // A stream can join only by waiting for an event, and whoever has the event of a capture sees the capture.
        if self.len.load(Ordering::Acquire) == 0 {
            return wait();
        }
        let _list = self.write();
        if stream.capture_id()?.is_some() {
            return wait();
        }
        let before = stream.mark()?;
        wait()?;
        if let Some(id) = stream.capture_id()? {
            stream.set_before_capture(id, before);
        }
        Ok(())
    }
}

/// A capture that is abandoned on drop unless it was ended, also if the captured work panics.
#[derive(Debug)]
pub(super) struct Capture<'a> {
    stream: &'a Stream,
    id: u64,
    ended: bool,
}

impl<'a> Capture<'a> {
    pub(super) fn begin(stream: &'a Stream) -> Result<Self> {
        let (backend, captures) = (stream.device().backend(), stream.device().captures());
        let mut list = captures.write();
        let before = stream.mark()?;
        // SAFETY: the stream lives.
        unsafe { backend.begin_capture(stream.handle()) }?;
        let id = match stream.capture_id() {
            Ok(Some(id)) => id,
            other => {
                // SAFETY: the stream lives, and its capture was begun above.
                unsafe { backend.abandon_capture(stream.handle()) };
                let reason = "the capture has ended already".to_owned();
                return Err(other.err().unwrap_or(Error::CaptureRefused { operation: "capturing", reason }));
            }
        };
        stream.set_before_capture(id, before);
        list.push(InProgress { id, uses: Mutex::default() });
        captures.len.store(list.len(), Ordering::Release);
        Ok(Self { stream, id, ended: false })
    }

    /// Ends the capture. Returns what was captured, and the sorted orders of the memory that it uses.
    pub(super) fn end(mut self) -> Result<(Handle, Vec<Arc<Order>>)> {
        let captures = self.stream.device().captures();
        let mut list = captures.write();
        self.ended = true;
        let uses = captures.remove(&mut list, self.id);
        // SAFETY: the stream lives, and its capture was begun by `begin`.
        let captured = unsafe { self.stream.device().backend().end_capture(self.stream.handle()) };
        drop(list);
        let mut orders: Vec<_> = uses.into_iter().map(|used| used.order).collect();
        Order::sort(&mut orders);
        Ok((captured?, orders))
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let captures = self.stream.device().captures();
            let mut list = captures.write();
            let uses = captures.remove(&mut list, self.id);
            // SAFETY: the stream lives, and its capture was begun by `begin`.
            unsafe { self.stream.device().backend().abandon_capture(self.stream.handle()) };
            drop((list, uses));
        }
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::device::{Device, EmulatorConfig};

    fn issue(order: &Arc<Order>, stream: &Stream) {
        order.issue(stream, || Ok(())).expect("the device lives");
    }

    #[test]
    fn only_a_change_of_streams_takes_an_event() -> Result<()> {
        let device = Device::emulator(EmulatorConfig::default())?;
        let streams = [Stream::new(&device)?, Stream::new(&device)?];
        let orders = [Arc::<Order>::default(), Arc::default()];
        for _ in 0..3 {
            orders.iter().zip(&streams).for_each(|(order, stream)| issue(order, stream));
            // SAFETY: the stream lives as long as the order, and is this device's.
            issue(&orders[0], &unsafe { Stream::from_raw(&device, streams[0].as_raw()) });
        }
        assert!(orders.iter().all(|order| lock(&order.0).event.is_none()), "no stream waits for another");
        issue(&orders[0], &streams[1]);
        assert!(lock(&orders[0].0).event.is_some() && lock(&orders[1].0).event.is_none());
        Ok(())
    }

    #[test]
    fn a_stream_lives_until_the_order_lets_it_go() -> Result<()> {
        let device = Device::emulator(EmulatorConfig::default())?;
        let (order, first) = (Arc::<Order>::default(), Stream::new(&device)?);
        let holders = first.holders();
        issue(&order, &first);
        assert_eq!(first.holders(), holders + 1);
        issue(&order, &Stream::new(&device)?);
        assert_eq!(first.holders(), holders);
        Ok(())
    }
}
