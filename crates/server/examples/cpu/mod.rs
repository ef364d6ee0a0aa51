//! Processor time of a process, as the kernel counts it for each thread.

/// Returns the nanoseconds of all threads that there are and whose number is counted. What threads took
/// that have ended is not in it.
pub(crate) fn nanos(is_counted: impl Fn(&str) -> bool) -> u64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let time = |thread: std::fs::DirEntry| {
        if !thread.file_name().to_str().is_some_and(&is_counted) {
            return None;
        }
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    threads.flatten().filter_map(time).sum()
}
