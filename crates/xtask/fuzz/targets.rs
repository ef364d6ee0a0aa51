// The targets' files as modules: taken in by the test and by the driver, which have to stand as deep.

/// Takes the targets' files in as modules and lists their functions.
macro_rules! targets {
    ($($name:ident $path:literal)*) => {
        $(
            #[path = $path]
            #[expect(unused_attributes, reason = "a program without main is a module here")]
            mod $name;
        )*
        const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name::target)),*];
    };
}

targets! {
    batch "../../../fuzz/fuzz_targets/batch.rs"
    consensus_entry "../../../fuzz/fuzz_targets/consensus_entry.rs"
    consensus_message "../../../fuzz/fuzz_targets/consensus_message.rs"
    current "../../../fuzz/fuzz_targets/current.rs"
    identity "../../../fuzz/fuzz_targets/identity.rs"
    keyspace_record "../../../fuzz/fuzz_targets/keyspace_record.rs"
    link_frames "../../../fuzz/fuzz_targets/link_frames.rs"
    link_handshake "../../../fuzz/fuzz_targets/link_handshake.rs"
    log_header "../../../fuzz/fuzz_targets/log_header.rs"
    log_lane "../../../fuzz/fuzz_targets/log_lane.rs"
    log_segment "../../../fuzz/fuzz_targets/log_segment.rs"
    manifest_edit "../../../fuzz/fuzz_targets/manifest_edit.rs"
    manifest_file "../../../fuzz/fuzz_targets/manifest_file.rs"
    object_record "../../../fuzz/fuzz_targets/object_record.rs"
    resp_reply "../../../fuzz/fuzz_targets/resp_reply.rs"
    resp_request "../../../fuzz/fuzz_targets/resp_request.rs"
    shard_entry "../../../fuzz/fuzz_targets/shard_entry.rs"
    shard_key "../../../fuzz/fuzz_targets/shard_key.rs"
    shard_record "../../../fuzz/fuzz_targets/shard_record.rs"
    stored_value "../../../fuzz/fuzz_targets/stored_value.rs"
    table_block "../../../fuzz/fuzz_targets/table_block.rs"
    table_metadata "../../../fuzz/fuzz_targets/table_metadata.rs"
    table_sealed "../../../fuzz/fuzz_targets/table_sealed.rs"
    value_file "../../../fuzz/fuzz_targets/value_file.rs"
    value_pointer "../../../fuzz/fuzz_targets/value_pointer.rs"
}
