//! A request costs no allocation, however it is cut into reads: counted, not believed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use atoll_resp::{Limits, Protocol, ReplyWriter, RequestParser};

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is; the counter is a plain
// thread-local without destructor, so counting neither allocates nor outlives its thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns how often `work` allocates.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    work();
    CALLS.get() - before
}

/// Parses a pipeline that arrives in pieces of `step` bytes; returns the number of requests.
fn read(parser: &mut RequestParser, stream: &[u8], step: usize) -> usize {
    let (mut start, mut shown, mut requests) = (0, 0, 0);
    while shown < stream.len() {
        shown = stream.len().min(shown + step);
        while let Some(len) =
            parser.parse(&stream[start..shown], &Limits::CLIENT).expect("well-formed")
        {
            let request = parser.request(&stream[start..shown]);
            for at in 0..request.len() {
                std::hint::black_box(request.get(at));
            }
            start += len;
            requests += 1;
        }
    }
    requests
}

fn pipeline() -> Vec<u8> {
    let mut stream = Vec::new();
    for number in 0..100 {
        let key = format!("key:{number}");
        atoll_resp::request(&mut stream, &["GET", &key]);
        atoll_resp::request(&mut stream, &["SET", &key, "a value of some length"]);
        atoll_resp::request(&mut stream, &["MSET", "a", "1", "b", "2", "c", "3", "d", "4"]);
    }
    stream
}

#[test]
fn requests_are_parsed_without_allocating() {
    let stream = pipeline();
    let mut parser = RequestParser::new();
    // The vector of spans grows to the longest request once.
    read(&mut parser, &stream, stream.len());
    for step in [stream.len(), 1000, 7, 1] {
        let mut requests = 0;
        let count = allocations(|| requests = read(&mut parser, &stream, step));
        assert_eq!((requests, count), (300, 0), "in pieces of {step} bytes");
    }
}

#[test]
fn a_long_request_that_arrives_slowly_allocates_as_its_arguments_do_and_not_as_it_announces() {
    let announced = b"*1000000000\r\n";
    let count = allocations(|| {
        let mut parser = RequestParser::new();
        assert_eq!(parser.parse(announced, &Limits::CLIENT), Ok(None));
    });
    assert!(count <= 1, "{count} allocations for a line");
}

#[test]
fn replies_are_written_without_allocating_once_the_buffer_has_its_size() {
    let mut out = Vec::with_capacity(64 << 10);
    for protocol in [Protocol::Resp2, Protocol::Resp3] {
        let count = allocations(|| {
            for number in 0..100i64 {
                let mut writer = ReplyWriter::new(&mut out, protocol);
                writer.bulk(b"a value of some length");
                writer.int(number);
                writer.simple("OK");
                writer.null();
                writer.error(b"ERR no such key");
            }
        });
        assert_eq!(count, 0, "{protocol:?}");
    }
}

#[test]
fn the_counter_counts() {
    let count = allocations(|| {
        std::hint::black_box(vec![1u8; 10]);
    });
    assert_eq!(count, 1);
}
