//! Glob patterns as Redis matches them: `*`, `?`, `[a-c]`, `[^a]`, `\x`.
//!
//! Only the last `*` seen is ever retried, because an earlier one can give nothing that it cannot.
//! That makes the worst case pattern times text, where the recursive matcher is exponential.

/// Returns whether `text` matches `pattern` as a whole.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern_at, mut text_at) = (0, 0);
    // Where to go on when the rest does not match: after the last star, one byte of text later.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let rest = &pattern[pattern_at..];
        if let [b'*', ..] = rest {
            pattern_at += 1;
            retry = Some((pattern_at, text_at));
            continue;
        }
        match text.get(text_at) {
            None => return rest.is_empty(),
            Some(&byte) => {
                if let Some(len) = match_one(rest, byte) {
                    pattern_at += len;
                    text_at += 1;
                    continue;
                }
            }
        }
        match &mut retry {
            None => return false,
            Some((star, start)) => {
                *start += 1;
                (pattern_at, text_at) = (*star, *start);
            }
        }
    }
}

/// Matches one byte against the element at the front of `pattern`; returns the element's length.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', ..] => match_class(pattern, byte),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// Matches a class. One that is not closed ends with the pattern.
fn match_class(pattern: &[u8], byte: u8) -> Option<usize> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let mut found = false;
    loop {
        match &pattern[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [low, b'-', high, ..] => {
                found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != negated).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h*llo", "hell", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("[^a-z]", "5", true),
            ("[^a-z]", "q", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a\\", "a\\", true),
            ("[\\]]", "]", true),
            ("[", "[", false),
            ("[abc", "b", true),
            ("[]", "a", false),
            ("[^]", "a", true),
            ("[a-]", "-", false),
            ("*a*b*c*", "xxaxxbxxcxx", true),
            ("*a*b*c*", "xxaxxcxxbxx", false),
            ("user:*:name", "user:1:2:name", true),
            ("a**b", "ab", true),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_do_not_blow_up() {
        let pattern = "a*".repeat(5_000) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(20_000).as_bytes()));
    }

    #[test]
    fn the_matcher_agrees_with_a_recursive_one() {
        fn slow(pattern: &[u8], text: &[u8]) -> bool {
            match pattern {
                [] => text.is_empty(),
                [b'*', rest @ ..] => (0..=text.len()).any(|skip| slow(rest, &text[skip..])),
                _ => text.split_first().is_some_and(|(&byte, tail)| {
                    match_one(pattern, byte).is_some_and(|len| slow(&pattern[len..], tail))
                }),
            }
        }
        let mut seed = 1u64;
        let mut below = |bound: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        for _ in 0..50_000 {
            let pattern: Vec<u8> =
                (0..below(8)).map(|_| b"ab*?[]^-\\"[below(9) as usize]).collect();
            let text: Vec<u8> = (0..below(7)).map(|_| b"ab-^"[below(4) as usize]).collect();
            assert_eq!(
                matches(&pattern, &text),
                slow(&pattern, &text),
                "{} {}",
                pattern.escape_ascii(),
                text.escape_ascii()
            );
        }
    }
}
