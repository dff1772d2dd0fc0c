//! Topics and the patterns that match them.

/// Bytes that a topic or pattern may have.
pub const TOPIC_MAX: usize = 255;

/// Why a text is no topic or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Nothing there.
    #[error("a topic needs at least one character, like \"camera/image\"")]
    Empty,
    /// Too long.
    #[error("topic {topic:?} has {len} bytes; at most {TOPIC_MAX} are possible")]
    TooLong {
        /// Its beginning.
        topic: String,
        /// Its bytes.
        len: usize,
    },
    /// `a//b`, `/a` or `a/`.
    #[error("topic {topic:?} has an empty segment; write it without leading, trailing or double \"/\"")]
    EmptySegment {
        /// The topic.
        topic: String,
    },
    /// A control character.
    #[error("topic {topic:?} has the control character {found:?}; remove it")]
    Control {
        /// The topic.
        topic: String,
        /// The character.
        found: char,
    },
    /// A wildcard where none may be.
    #[error("topic {topic:?} has a wildcard, which only a subscriber may use; name one topic")]
    Wildcard {
        /// The topic.
        topic: String,
    },
    /// `a*`.
    #[error("\"*\" in {topic:?} must be a whole segment: \"*\" for exactly one, \"**\" for any number")]
    PartialWildcard {
        /// The topic.
        topic: String,
    },
}

/// Checks the topic of a publisher.
pub fn check_topic(topic: &str) -> Result<(), TopicError> {
    check_segments(topic)?;
    if topic.contains('*') {
        return Err(TopicError::Wildcard { topic: topic.to_owned() });
    }
    Ok(())
}

/// Checks the pattern of a subscriber.
pub fn check_pattern(pattern: &str) -> Result<(), TopicError> {
    check_segments(pattern)?;
    if pattern.split('/').any(|segment| segment.contains('*') && segment != "*" && segment != "**") {
        return Err(TopicError::PartialWildcard { topic: pattern.to_owned() });
    }
    Ok(())
}

fn check_segments(topic: &str) -> Result<(), TopicError> {
    if topic.is_empty() {
        return Err(TopicError::Empty);
    }
    if topic.len() > TOPIC_MAX {
        let start = topic.chars().take(40).collect();
        return Err(TopicError::TooLong { topic: start, len: topic.len() });
    }
    if let Some(found) = topic.chars().find(|c| c.is_control()) {
        return Err(TopicError::Control { topic: topic.to_owned(), found });
    }
    if topic.split('/').any(str::is_empty) {
        return Err(TopicError::EmptySegment { topic: topic.to_owned() });
    }
    Ok(())
}

/// Whether a topic is one of the bus's own.
pub fn is_own(topic: &str) -> bool {
    topic == "$vbus" || topic.starts_with("$vbus/")
}

/// Whether `pattern` matches `topic`; both passed their checks.
///
/// `*` is exactly one segment, `**` any number, also none. A wildcard never matches a first segment that
/// starts with `$`.
pub fn matches(pattern: &str, topic: &str) -> bool {
    if topic.starts_with('$') && pattern.starts_with('*') {
        return false;
    }
    let pattern: Vec<&str> = pattern.split('/').collect();
    let topic: Vec<&str> = topic.split('/').collect();
    matches_segments(&pattern, &topic)
}

/// Whether some topic matches both patterns, each of which may be a topic.
pub fn overlap(one: &str, other: &str) -> bool {
    let is_apart = |one: &str, other: &str| one.starts_with('$') && other.starts_with('*');
    if is_apart(one, other) || is_apart(other, one) {
        return false;
    }
    let one: Vec<&str> = one.split('/').collect();
    let other: Vec<&str> = other.split('/').collect();
    // Of what is left from segment i of one and segment j of the other, backwards; the answer is at (0, 0).
    let mut below = vec![false; other.len() + 1];
    for i in (0..=one.len()).rev() {
        let mut row = vec![false; other.len() + 1];
        for j in (0..=other.len()).rev() {
            row[j] = match (one.get(i), other.get(j)) {
                (None, None) => true,
                (Some(&"**"), _) | (_, Some(&"**")) => below[j] || (j < other.len() && row[j + 1]),
                (Some(&a), Some(&b)) => (a == b || a == "*" || b == "*") && below[j + 1],
                _ => false,
            };
        }
        below = row;
    }
    below[0]
}

/// Walks both at once and, after a mismatch, lets the last `**` take one segment more.
fn matches_segments(pattern: &[&str], topic: &[&str]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < topic.len() {
        match pattern.get(p) {
            Some(&"**") => {
                retry = Some((p, t));
                p += 1;
                continue;
            }
            Some(&segment) if segment == "*" || segment == topic[t] => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        let Some((at, taken)) = retry else { return false };
        retry = Some((at, taken + 1));
        p = at + 1;
        t = taken + 1;
    }
    pattern[p..].iter().all(|&segment| segment == "**")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn patterns_overlap_where_a_topic_matches_both() {
        for (one, other, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/c", false),
            ("a/*", "a/b", true),
            ("a/*", "*/b", true),
            ("a/*", "b/*", false),
            ("a/*", "a", false),
            ("a/**", "a", true),
            ("a/**/b", "a/*/c/**", true),
            ("a/**/b", "a/*/c", false),
            ("**", "**/x", true),
            ("**", "$vbus/x", false),
            ("*/x", "$vbus/x", false),
            ("$vbus/*", "$vbus/x", true),
        ] {
            assert_eq!(overlap(one, other), expected, "{one} and {other}");
            assert_eq!(overlap(other, one), expected, "{other} and {one}");
        }
    }

    #[test]
    fn wildcards_match_whole_segments() {
        for (pattern, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", false),
            ("a/*", "a", false),
            ("a/**", "a", true),
            ("a/**", "a/b/c", true),
            ("**", "a/b/c", true),
            ("**/c", "a/b/c", true),
            ("**/c", "c", true),
            ("**/b/**/d", "a/b/c/d", true),
            ("**/b/**/d", "a/b/c/e", false),
            ("*/b/*", "a/b/c", true),
            ("**/*", "a", true),
            ("*/**/*", "a", false),
            ("**", "$vbus/x", false),
            ("*/x", "$vbus/x", false),
            ("$vbus/*", "$vbus/x", true),
        ] {
            assert_eq!(matches(pattern, topic), expected, "{pattern} {topic}");
        }
    }

    #[test]
    fn many_double_stars_do_not_explode() {
        let pattern = ["**/a"; 20].join("/") + "/b";
        let topic = ["a"; 100].join("/");
        assert!(!matches(&pattern, &topic));
    }

    #[test]
    fn bad_topics_are_named_with_what_is_wrong() {
        for (topic, words) in [
            ("", "at least one"),
            ("/a", "empty segment"),
            ("a//b", "empty segment"),
            ("a/", "empty segment"),
            ("a\nb", "control"),
            ("a/*", "only a subscriber"),
        ] {
            let error = check_topic(topic).expect_err(topic).to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(check_topic(&"x".repeat(256)).is_err());
        assert!(check_topic(&"x".repeat(255)).is_ok());
        assert!(check_pattern("a*/b").is_err());
        assert!(check_pattern("*/**/b").is_ok());
    }
}
