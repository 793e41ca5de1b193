//! Blocks on their way: compressed by whichever thread is free, written in the order of their segment.
//!
//! There is a fixed number of blocks, and each comes back once it is written: that bounds the memory, and makes the
//! reader of a stream wait for a slow store.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::compress::Compressor;
use super::{Hashing, PackError};
use crate::first_error::FirstError;

/// Of a block before compression, about. Larger ones compress hardly better, smaller ones visibly worse.
pub(super) const BLOCK_BYTES: usize = 1 << 20;

/// A piece of a segment, and its frame.
#[derive(Default)]
pub(super) struct Block {
    pub(super) raw: Vec<u8>,
    packed: Vec<u8>,
}

/// A block to be compressed.
struct Work {
    segment: usize,
    sequence: u64,
    block: Block,
}

/// What the reader of a stream gives full blocks to and takes empty ones from.
pub(super) struct Feed {
    free: Receiver<Block>,
    queue: Sender<Work>,
    /// Of the next block of each segment.
    sequences: Vec<u64>,
}

/// What threads work at.
pub(super) struct Pool<'a, S> {
    queue: Mutex<Receiver<Work>>,
    free: SyncSender<Block>,
    lanes: Vec<Lane<S>>,
    errors: &'a FirstError<PackError>,
}

/// A segment that is being written.
struct Lane<S>(Mutex<LaneState<S>>);

struct LaneState<S> {
    /// The block that is written next.
    next: u64,
    /// Blocks that were compressed before their turn.
    waiting: BTreeMap<u64, Block>,
    /// Taken by the thread that writes.
    sink: Option<Hashing<S>>,
    failed: bool,
}

impl Feed {
    /// An empty block; waits until one is written.
    pub(super) fn empty(&self) -> Block {
        // The pool outlives the feed, and no block of it is lost.
        let mut block = self.free.recv().unwrap_or_default();
        block.raw.clear();
        // A sparse chunk may be large; its memory is not kept.
        block.raw.shrink_to(2 * BLOCK_BYTES);
        block
    }

    /// The next block of a segment.
    pub(super) fn push(&mut self, segment: usize, block: Block) {
        let sequence = self.sequences[segment];
        self.sequences[segment] += 1;
        // Fails when every thread panicked, and then the panic is what is reported.
        drop(self.queue.send(Work {
            segment,
            sequence,
            block,
        }));
    }

    /// Whether a segment has any block yet.
    pub(super) fn has_begun(&self, segment: usize) -> bool {
        self.sequences[segment] > 0
    }
}

impl<'a, S: Write> Pool<'a, S> {
    /// A pool for so many threads, with a lane for each sink.
    pub(super) fn new(sinks: Vec<S>, threads: usize, errors: &'a FirstError<PackError>) -> (Self, Feed) {
        // One open for each segment; for each thread one in work and one that waits.
        let blocks = sinks.len() + 2 * threads + 1;
        let (free, is_free) = sync_channel(blocks);
        for _ in 0..blocks {
            // There is room for all of them.
            drop(free.try_send(Block::default()));
        }
        let (queue, receiver) = channel();
        let feed = Feed {
            free: is_free,
            queue,
            sequences: vec![0; sinks.len()],
        };
        let lanes = sinks.into_iter().map(Lane::new).collect();
        let pool = Self {
            queue: Mutex::new(receiver),
            free,
            lanes,
            errors,
        };
        (pool, feed)
    }

    /// Compresses and writes until the feed is dropped. After an error blocks only come back.
    pub(super) fn work(&self, mut compressor: Compressor) {
        loop {
            let work = lock(&self.queue).recv();
            let Ok(Work {
                segment,
                sequence,
                mut block,
            }) = work
            else {
                return;
            };
            if self.errors.ended().is_set() {
                self.give_back(block);
                continue;
            }
            let Block { raw, packed } = &mut block;
            match compressor.compress(raw, packed) {
                Ok(()) => self.deliver(segment, sequence, block),
                Err(error) => {
                    self.give_back(block);
                    self.errors.report(PackError::Compress(error));
                }
            }
        }
    }

    /// Writes a block if it is its turn, and those that waited for it.
    fn deliver(&self, segment: usize, sequence: u64, block: Block) {
        let lane = &self.lanes[segment];
        let mut state = lock(&lane.0);
        if state.failed {
            self.give_back(block);
            return;
        }
        state.waiting.insert(sequence, block);
        // Whoever writes looks for the next block before it stops.
        let Some(mut sink) = state.sink.take() else {
            return;
        };
        loop {
            let next = state.next;
            let Some(block) = state.waiting.remove(&next) else {
                state.sink = Some(sink);
                return;
            };
            drop(state);
            let written = sink.write_all(&block.packed);
            self.give_back(block);
            let failed = written.is_err();
            if let Err(source) = written {
                let number = segment + 1;
                self.errors.report(PackError::Sink { number, source });
            }
            state = lock(&lane.0);
            state.next += 1;
            if failed {
                state.failed = true;
                for (_, block) in std::mem::take(&mut state.waiting) {
                    self.give_back(block);
                }
                return;
            }
        }
    }

    fn give_back(&self, block: Block) {
        // Nobody takes blocks any more when the stream has ended.
        drop(self.free.send(block));
    }

    /// The sinks, after the last thread's end; `None` for one that failed.
    pub(super) fn into_sinks(self) -> Vec<Option<Hashing<S>>> {
        let state = |lane: Lane<S>| lane.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.lanes.into_iter().map(|lane| state(lane).sink).collect()
    }
}

impl<S: Write> Lane<S> {
    fn new(sink: S) -> Self {
        Self(Mutex::new(LaneState {
            next: 0,
            waiting: BTreeMap::new(),
            sink: Some(Hashing::new(sink)),
            failed: false,
        }))
    }
}

/// A thread that panicked ends all of them, whatever it left.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
