//! Patterns match topics as a plain walk over their segments says.

use vbus_core::bus::topic::{check_pattern, check_topic, matches};

use super::super::two_texts;

pub fn run(bytes: &[u8]) {
    let Some((pattern, topic)) = two_texts(bytes) else { return };
    if check_pattern(pattern).is_err() || check_topic(topic).is_err() {
        return;
    }
    let hidden = topic.starts_with('$') && pattern.starts_with('*');
    let pattern_segments: Vec<&str> = pattern.split('/').collect();
    let topic_segments: Vec<&str> = topic.split('/').collect();
    assert_eq!(matches(pattern, topic), !hidden && walk(&pattern_segments, &topic_segments));
}

/// As the contract words it; quadratic, which 255 bytes allow.
fn walk(pattern: &[&str], topic: &[&str]) -> bool {
    let mut reached = vec![false; topic.len() + 1];
    reached[0] = true;
    for segment in pattern {
        let mut next = vec![false; topic.len() + 1];
        for at in 0..=topic.len() {
            match *segment {
                "**" => next[at] = reached[at] || (at > 0 && next[at - 1]),
                _ if at > 0 => next[at] = reached[at - 1] && (*segment == "*" || *segment == topic[at - 1]),
                _ => {}
            }
        }
        reached = next;
    }
    reached[topic.len()]
}
