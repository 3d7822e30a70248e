//! The generated code of the API; nothing else. Its manual is in `proto/`.

/// Package `majority.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("majority.v1");
}

/// All of `proto/` with what it imports and its comments, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("majority.v1");
