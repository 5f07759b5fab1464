//! Every frame survives its bytes, and bytes that are none are refused.

use super::*;
use crate::manifest::digest::{Digest, DigestAlgorithm};
use proptest::prelude::*;

fn refusals() -> impl Strategy<Value = Option<Refusal>> {
    prop::option::of((0usize..5).prop_map(|at| Refusal::CODES[at].1))
}

fn answers() -> impl Strategy<Value = Answer> {
    (0u8..3, any::<u32>(), any::<u64>(), 0usize..3).prop_map(|(kind, chunk, len_bytes, code)| match kind {
        0 => Answer::Chunk { chunk, len_bytes },
        1 => Answer::NotYet { chunk },
        _ => Answer::Failed { chunk, failure: Failure::CODES[code].1 },
    })
}

proptest! {
    #[test]
    fn a_hello_is_read_as_it_was_made(version: u16, features: u32, root: [u8; 32], identity in prop::collection::vec(any::<u8>(), 0..100)) {
        let hello = Hello { version, features, root, identity };
        let bytes = hello.encode().unwrap();
        let (mut read, identity_len) = Hello::decode(bytes[..HELLO_BYTES].try_into().unwrap()).unwrap();
        read.identity = bytes[HELLO_BYTES..].to_vec();
        prop_assert_eq!(read.identity.len(), identity_len);
        prop_assert_eq!(read, hello);
    }

    #[test]
    fn a_welcome_is_read_as_it_was_made(refusal in refusals(), version: u16, features: u32, chunk_size: u64, chunk_count: u32, max_chunks_per_read: u32) {
        let welcome = Welcome { refusal, version, features, chunk_size, chunk_count, max_chunks_per_read };
        prop_assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
    }

    #[test]
    fn a_read_is_read_as_it_was_made(chunks in prop::collection::vec(0u32..500, 1..200)) {
        let read = Read::new(&chunks).unwrap();
        let bytes = read.encode();
        let ranges = Read::decode_head(bytes[..READ_BYTES].try_into().unwrap()).unwrap();
        prop_assert_eq!(bytes.len(), READ_BYTES + ranges * RANGE_BYTES);
        let again = Read::decode_ranges(&bytes[READ_BYTES..]).unwrap();
        prop_assert_eq!(again.chunks().collect::<Vec<_>>(), chunks);
    }

    #[test]
    fn an_answer_is_read_as_it_was_made(answer in answers()) {
        prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }

    #[test]
    fn announced_chunks_are_read_in_the_order_in_which_they_came(chunks in prop::collection::vec(0u32..5_000, 0..2_000)) {
        let mut again = Vec::new();
        for frame in Announcement::held(chunks.iter().copied()) {
            let bytes = frame.encode();
            let (head, ranges) = bytes.split_at(ANNOUNCEMENT_BYTES);
            let Head::Held { ranges_bytes } = Announcement::decode_head(head.try_into().unwrap(), DigestAlgorithm::Crc64Nvme).unwrap() else {
                panic!("{frame:?}")
            };
            prop_assert_eq!(ranges.len(), ranges_bytes);
            let ranges = Announcement::decode_ranges(ranges, 5_000).unwrap();
            again.extend(ranges.iter().flat_map(Range::chunks));
            prop_assert_eq!(Announcement::Held(ranges), frame);
        }
        prop_assert_eq!(again, chunks);
    }

    #[test]
    fn announced_digests_are_read_with_their_chunks(
        chunks in prop::collection::vec((0u32..5_000, any::<u64>()), 0..2_000), is_crc: bool, id: [u8; 32],
    ) {
        let algorithm = if is_crc { DigestAlgorithm::Crc64Nvme } else { DigestAlgorithm::Blake3 };
        let digest = |number: u64| {
            let bytes: Vec<u8> = number.to_be_bytes().into_iter().cycle().take(algorithm.digest_bytes()).collect();
            Digest::from_bytes(algorithm, &bytes).unwrap()
        };
        let chunks: Vec<(u32, Digest)> = chunks.into_iter().map(|(chunk, number)| (chunk, digest(number))).collect();
        let mut again = Vec::new();
        for frame in Announcement::digested(&chunks) {
            let bytes = frame.encode();
            let (head, rest) = bytes.split_at(ANNOUNCEMENT_BYTES);
            let head = Announcement::decode_head(head.try_into().unwrap(), algorithm).unwrap();
            let Head::Digested { ranges_bytes, digests_bytes } = head else { panic!("{frame:?}") };
            prop_assert_eq!(rest.len(), ranges_bytes + digests_bytes);
            let (ranges, digests) = rest.split_at(ranges_bytes);
            again.extend(Announcement::decode_digested(ranges, digests, algorithm, 5_000).unwrap());
            for cut in [1, algorithm.digest_bytes()] {
                let fewer = Announcement::decode_digested(ranges, &digests[cut..], algorithm, 5_000);
                prop_assert_eq!(fewer, Err(FrameError::BadAnnouncement { ranges: ranges.len() / RANGE_BYTES }));
            }
        }
        prop_assert_eq!(again, chunks);
        let bytes = Announcement::Final(id).encode();
        let (head, rest) = bytes.split_at(ANNOUNCEMENT_BYTES);
        prop_assert_eq!(Announcement::decode_head(head.try_into().unwrap(), algorithm), Ok(Head::Final));
        prop_assert_eq!(rest, id);
    }

    #[test]
    fn a_sign_of_life_is_read_as_it_was_made(has_source: bool, silent_ms: u32) {
        let sign = SignOfLife { has_source, silent_ms };
        let bytes = Announcement::Alive(sign).encode();
        prop_assert_eq!(Announcement::decode_head(bytes[..].try_into().unwrap(), DigestAlgorithm::Crc64Nvme), Ok(Head::Alive(sign)));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: [u8; 64], ranges in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Hello::decode(bytes[..HELLO_BYTES].try_into().unwrap());
        let _ = Welcome::decode(bytes[..WELCOME_BYTES].try_into().unwrap());
        let _ = Read::decode_head(bytes[..READ_BYTES].try_into().unwrap());
        let _ = Answer::decode(bytes[..ANSWER_BYTES].try_into().unwrap());
        let _ = Announcement::decode_head(bytes[..ANNOUNCEMENT_BYTES].try_into().unwrap(), DigestAlgorithm::Blake3);
        if let Ok(ranges) = Announcement::decode_ranges(&ranges, 1_000) {
            prop_assert!(ranges.iter().flat_map(Range::chunks).all(|chunk| chunk < 1_000));
        }
        if let Ok(read) = Read::decode_ranges(&ranges) {
            prop_assert!(read.chunks().count() <= MAX_CHUNKS_PER_READ as usize);
        }
    }
}

#[test]
fn what_passes_a_cap_is_refused() {
    let hello = Hello { version: 1, features: 0, root: [0; 32], identity: vec![0; MAX_IDENTITY_BYTES + 1] };
    assert_eq!(hello.encode(), Err(FrameError::IdentityTooLong(MAX_IDENTITY_BYTES + 1)));
    let scattered: Vec<u32> = (0..600).map(|chunk| chunk * 2).collect();
    assert!(matches!(Read::new(&scattered), Err(FrameError::BadRead { .. })));
    assert!(matches!(Read::new(&[]), Err(FrameError::BadRead { .. })));
    let mut range = u32::MAX.to_le_bytes().to_vec();
    range.extend(2u32.to_le_bytes());
    assert!(matches!(Read::decode_ranges(&range), Err(FrameError::BadRead { .. })), "chunk numbers overflow");
    for (first, count) in [(0, 0), (0, 11), (10, 1), (u32::MAX, 1), (5, u32::MAX)] {
        let range = Announcement::Held(vec![Range { first, count }]).encode();
        let ranges = Announcement::decode_ranges(&range[ANNOUNCEMENT_BYTES..], 10);
        assert_eq!(ranges, Err(FrameError::BadAnnouncement { ranges: 1 }), "{first} {count}");
    }
    for ranges in [0u16, 257, u16::MAX] {
        let head = [&[1, 0][..], &ranges.to_le_bytes(), &[0; 4]].concat();
        let head = Announcement::decode_head(head[..].try_into().unwrap(), DigestAlgorithm::Blake3);
        assert_eq!(head, Err(FrameError::BadAnnouncement { ranges: ranges.into() }));
    }
    for chunks in [0u32, 1, 257, u32::MAX] {
        let head = [&[3, 0][..], &2u16.to_le_bytes(), &chunks.to_le_bytes()].concat();
        let head = Announcement::decode_head(head[..].try_into().unwrap(), DigestAlgorithm::Blake3);
        assert_eq!(head, Err(FrameError::BadAnnouncement { ranges: 2 }), "{chunks}");
    }
    assert_eq!(check_magic(b"GET / HTTP/1.1"), Err(FrameError::ForeignMagic));
}
