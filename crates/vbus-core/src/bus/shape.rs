//! The shape of a type as text, and whether what is offered and what is asked can be one thing.
//!
//! Publisher and subscriber announce their types by shape and field names, never by class name.
//! Two types *agree* if some value fits both; a value that fits only one is an error of that value,
//! found when it is encoded or decoded. So agreement errs on the side of connecting.
//!
//! ```text
//! shape  = item *( "|" item )                    any of these
//! item   = "any" | "none" | "bool" | "int" | "float" | "str" | "bytes"
//!        | "datetime" | "date" | "time" | "duration" | "uuid" | "decimal"
//!        | "ndarray" [ "<" name ">" ]            with its dtype, if it must be one
//!        | "codec<" name ">"                     whatever a registered codec makes of it
//!        | "=" literal                           one value: =5  =-1  ='cat'  =true  =1.5
//!        | "list<" shape ">"
//!        | "dict<" shape "," shape ">"
//!        | "tuple<" [ shape *( "," shape ) ] ">"
//!        | "{" [ field *( "," field ) ] "}"      a map with these keys: dataclass, TypedDict, Struct
//!        | "(" [ field *( "," field ) ] ")"      an array with these places: NamedTuple
//!        | "^" number                            the number-th record around this place, 0 the nearest
//! field  = name [ "?" ] ":" shape                "?": may be missing
//! name   = 1*( letter | digit | "_" | "-" | "." | "%" hex hex )
//! ```
//!
//! The empty text is "no type", which agrees with everything. The text comes from peers: its size
//! and its depth are bounded, and what cannot be read agrees with nothing.

use std::collections::HashMap;

/// Where and how two shapes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// The dotted field of the type, or `"type"` for the whole of it.
    pub field: String,
    /// What the publisher has there.
    pub offered: String,
    /// What the subscriber wants there.
    pub asked: String,
}

/// Ok if some value fits both shapes, else the first place where none can.
pub fn agree(offered: &str, asked: &str) -> Result<(), Disagreement> {
    if offered.is_empty() || asked.is_empty() || (offered == asked && offered.len() <= MAX_LEN_BYTES) {
        return Ok(());
    }
    let whole = || Disagreement { field: "type".to_owned(), offered: cut(offered), asked: cut(asked) };
    let (Some(offered_shape), Some(asked_shape)) = (Shape::parse(offered), Shape::parse(asked)) else {
        return Err(whole());
    };
    let mut comparison =
        Comparison { offered: &offered_shape, asked: &asked_shape, verdicts: HashMap::new(), steps: 0 };
    comparison.nodes(offered_shape.root, asked_shape.root, 0).map_err(|misfit| Disagreement {
        field: if misfit.path.is_empty() { "type".to_owned() } else { misfit.dotted() },
        offered: cut(misfit.offered),
        asked: cut(misfit.asked),
    })
}

/// Longest text that is read at all.
const MAX_LEN_BYTES: usize = 64 * 1024;
/// Deepest nesting that is read, which bounds the stack of the parser.
const MAX_DEPTH: usize = 64;
/// Deepest nesting that is compared; recursive types may unfold further than they are written.
const MAX_COMPARED_DEPTH: usize = 256;
/// Comparisons after which two shapes count as agreeing: the values are checked anyway.
const MAX_STEPS: usize = 100_000;
/// Longest piece of a shape that a disagreement quotes.
const MAX_QUOTED_CHARS: usize = 200;

/// A parsed shape: nodes that name each other by index, since types may be recursive.
struct Shape<'t> {
    nodes: Vec<Node<'t>>,
    root: NodeIndex,
}

type NodeIndex = usize;

struct Node<'t> {
    kind: Kind<'t>,
    text: &'t str,
}

enum Kind<'t> {
    Any,
    /// Known by its word alone: `int`, `str`, `uuid`, …
    Atom(&'t str),
    /// One value, as written behind the `=`.
    Literal(&'t str),
    Array(Option<&'t str>),
    Codec(&'t str),
    List(NodeIndex),
    Dict(NodeIndex, NodeIndex),
    Tuple(Vec<NodeIndex>),
    Record(Vec<Field<'t>>),
    Row(Vec<Field<'t>>),
    Union(Vec<NodeIndex>),
}

struct Field<'t> {
    name: &'t str,
    may_be_missing: bool,
    shape: NodeIndex,
}

impl<'t> Shape<'t> {
    fn parse(text: &'t str) -> Option<Self> {
        if text.len() > MAX_LEN_BYTES {
            return None;
        }
        let mut parser = Parser { text, at: 0, nodes: Vec::new(), records: Vec::new() };
        let root = parser.union(0)?;
        (parser.at == text.len()).then_some(Shape { nodes: parser.nodes, root })
    }
}

/// Recursive descent; every `None` means "this is no shape".
struct Parser<'t> {
    text: &'t str,
    at: usize,
    nodes: Vec<Node<'t>>,
    /// The records around the place that is being read, the nearest last.
    records: Vec<NodeIndex>,
}

impl<'t> Parser<'t> {
    fn union(&mut self, depth: usize) -> Option<NodeIndex> {
        if depth > MAX_DEPTH {
            return None;
        }
        let start = self.at;
        let first = self.item(depth)?;
        if self.peek() != Some(b'|') {
            return Some(first);
        }
        let mut items = vec![first];
        while self.eat(b'|') {
            items.push(self.item(depth)?);
        }
        Some(self.push(start, Kind::Union(items)))
    }

    fn item(&mut self, depth: usize) -> Option<NodeIndex> {
        let start = self.at;
        match self.peek()? {
            b'{' => self.record(depth, b'}'),
            b'(' => self.record(depth, b')'),
            b'^' => self.reference(),
            b'=' => {
                self.at += 1;
                let literal = self.literal()?;
                Some(self.push(start, Kind::Literal(literal)))
            }
            _ => {
                let kind = match self.name()? {
                    "any" => Kind::Any,
                    "ndarray" => {
                        Kind::Array(if self.peek() == Some(b'<') { Some(self.argument()?) } else { None })
                    }
                    "codec" => Kind::Codec(self.argument()?),
                    "list" => {
                        let mut items = self.arguments(depth)?;
                        let item = items.pop()?;
                        items.is_empty().then_some(Kind::List(item))?
                    }
                    "dict" => match self.arguments(depth)?[..] {
                        [key, value] => Kind::Dict(key, value),
                        _ => return None,
                    },
                    "tuple" => Kind::Tuple(self.arguments(depth)?),
                    word if ATOMS.contains(&word) => Kind::Atom(word),
                    _ => return None,
                };
                Some(self.push(start, kind))
            }
        }
    }

    fn record(&mut self, depth: usize, end: u8) -> Option<NodeIndex> {
        let start = self.at;
        self.at += 1;
        // The place is taken first, so that fields can refer to it.
        let index = self.push(start, Kind::Any);
        self.records.push(index);
        let mut fields = Vec::new();
        while !self.eat(end) {
            if !fields.is_empty() && !self.eat(b',') {
                return None;
            }
            let name = self.name()?;
            let may_be_missing = self.eat(b'?');
            if !self.eat(b':') {
                return None;
            }
            fields.push(Field { name, may_be_missing, shape: self.union(depth + 1)? });
        }
        self.records.pop();
        self.nodes[index] = Node {
            kind: if end == b'}' { Kind::Record(fields) } else { Kind::Row(fields) },
            text: &self.text[start..self.at],
        };
        Some(index)
    }

    fn reference(&mut self) -> Option<NodeIndex> {
        self.at += 1;
        let outward: usize = self.take_while(|byte| byte.is_ascii_digit()).parse().ok()?;
        let place = self.records.len().checked_sub(outward)?.checked_sub(1)?;
        Some(self.records[place])
    }

    /// `<a,b>` of shapes; `<>` is none.
    fn arguments(&mut self, depth: usize) -> Option<Vec<NodeIndex>> {
        if !self.eat(b'<') {
            return None;
        }
        let mut items = Vec::new();
        while !self.eat(b'>') {
            if !items.is_empty() && !self.eat(b',') {
                return None;
            }
            items.push(self.union(depth + 1)?);
        }
        Some(items)
    }

    /// `<name>`.
    fn argument(&mut self) -> Option<&'t str> {
        if !self.eat(b'<') {
            return None;
        }
        let name = self.name()?;
        self.eat(b'>').then_some(name)
    }

    fn literal(&mut self) -> Option<&'t str> {
        let start = self.at;
        if self.eat(b'\'') {
            self.take_while(is_name_byte);
            if !self.eat(b'\'') {
                return None;
            }
        } else if self.take_while(|byte| is_name_byte(byte) || byte == b'+').is_empty() {
            return None;
        }
        Some(&self.text[start..self.at])
    }

    fn name(&mut self) -> Option<&'t str> {
        let name = self.take_while(is_name_byte);
        (!name.is_empty()).then_some(name)
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'t str {
        let rest = &self.text.as_bytes()[self.at..];
        let len = rest.iter().position(|&byte| !accept(byte)).unwrap_or(rest.len());
        // Only ASCII is accepted, so this never cuts a character.
        let taken = &self.text[self.at..self.at + len];
        self.at += len;
        taken
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn push(&mut self, start: usize, kind: Kind<'t>) -> NodeIndex {
        self.nodes.push(Node { kind, text: &self.text[start..self.at] });
        self.nodes.len() - 1
    }
}

const ATOMS: [&str; 12] = [
    "none", "bool", "int", "float", "str", "bytes", "datetime", "date", "time", "duration", "uuid", "decimal",
];

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'%')
}

/// A place where no value fits both; `path` is innermost first.
struct Misfit<'t> {
    path: Vec<&'t str>,
    offered: &'t str,
    asked: &'t str,
}

impl Misfit<'_> {
    fn dotted(&self) -> String {
        let names: Vec<&str> = self.path.iter().rev().copied().collect();
        names.join(".")
    }
}

struct Comparison<'s, 't> {
    offered: &'s Shape<'t>,
    asked: &'s Shape<'t>,
    /// Pairs of records that were met: true while under way, which is what makes recursion end.
    verdicts: HashMap<(NodeIndex, NodeIndex), bool>,
    steps: usize,
}

impl<'t> Comparison<'_, 't> {
    fn nodes(&mut self, offered: NodeIndex, asked: NodeIndex, depth: usize) -> Result<(), Misfit<'t>> {
        self.steps += 1;
        if self.steps > MAX_STEPS || depth > MAX_COMPARED_DEPTH {
            return Ok(());
        }
        let (left, right) = (&self.offered.nodes[offered], &self.asked.nodes[asked]);
        let here = || Misfit { path: Vec::new(), offered: left.text, asked: right.text };
        let fits = |yes: bool| if yes { Ok(()) } else { Err(here()) };
        match (&left.kind, &right.kind) {
            (Kind::Any, _) | (_, Kind::Any) => Ok(()),
            (Kind::Union(_), _) | (_, Kind::Union(_)) => {
                self.unions(offered, asked, depth).map_err(|nearest| nearest.unwrap_or_else(here))
            }
            (Kind::Atom(left), Kind::Atom(right)) => {
                fits(left == right || matches!((*left, *right), ("int", "float") | ("float", "int")))
            }
            (Kind::Literal(left), Kind::Literal(right)) => fits(left == right),
            (Kind::Literal(value), Kind::Atom(word)) | (Kind::Atom(word), Kind::Literal(value)) => {
                fits(literal_is(value, word))
            }
            (Kind::Array(left), Kind::Array(right)) => {
                fits(left.is_none() || right.is_none() || left == right)
            }
            (Kind::Codec(left), Kind::Codec(right)) => fits(left == right),
            (Kind::List(left), Kind::List(right)) => self.nodes(*left, *right, depth + 1),
            (Kind::List(item), Kind::Tuple(places)) => {
                places.iter().try_for_each(|place| self.nodes(*item, *place, depth + 1))
            }
            (Kind::Tuple(places), Kind::List(item)) => {
                places.iter().try_for_each(|place| self.nodes(*place, *item, depth + 1))
            }
            (Kind::Tuple(left), Kind::Tuple(right)) => {
                fits(left.len() == right.len())?;
                left.iter().zip(right).try_for_each(|(left, right)| self.nodes(*left, *right, depth + 1))
            }
            (Kind::Dict(left_key, left_value), Kind::Dict(right_key, right_value)) => {
                self.nodes(*left_key, *right_key, depth + 1)?;
                self.nodes(*left_value, *right_value, depth + 1)
            }
            (Kind::Dict(key, value), Kind::Record(fields)) => {
                fits(keys_may_be_names(&self.offered.nodes, *key))?;
                fields.iter().filter(|field| !field.may_be_missing).try_for_each(|field| {
                    self.nodes(*value, field.shape, depth + 1).map_err(|misfit| misfit.within(field.name))
                })
            }
            (Kind::Record(fields), Kind::Dict(key, value)) => {
                fits(keys_may_be_names(&self.asked.nodes, *key))?;
                fields.iter().filter(|field| !field.may_be_missing).try_for_each(|field| {
                    self.nodes(field.shape, *value, depth + 1).map_err(|misfit| misfit.within(field.name))
                })
            }
            (Kind::Row(fields), Kind::List(item)) => {
                fields.iter().filter(|field| !field.may_be_missing).try_for_each(|field| {
                    self.nodes(field.shape, *item, depth + 1).map_err(|misfit| misfit.within(field.name))
                })
            }
            (Kind::List(item), Kind::Row(fields)) => {
                fields.iter().filter(|field| !field.may_be_missing).try_for_each(|field| {
                    self.nodes(*item, field.shape, depth + 1).map_err(|misfit| misfit.within(field.name))
                })
            }
            (Kind::Row(fields), Kind::Tuple(places)) => {
                fits(can_be_of_length(fields, places.len()))?;
                fields.iter().zip(places).try_for_each(|(field, place)| {
                    self.nodes(field.shape, *place, depth + 1).map_err(|misfit| misfit.within(field.name))
                })
            }
            (Kind::Tuple(places), Kind::Row(fields)) => {
                fits(can_be_of_length(fields, places.len()))?;
                places.iter().zip(fields).try_for_each(|(place, field)| {
                    self.nodes(*place, field.shape, depth + 1).map_err(|misfit| misfit.within(field.name))
                })
            }
            (Kind::Record(left), Kind::Record(right)) => {
                self.once(offered, asked, |comparison| comparison.records(left, right, depth))
            }
            (Kind::Row(left), Kind::Row(right)) => {
                self.once(offered, asked, |comparison| comparison.rows(left, right, depth))
            }
            _ => Err(here()),
        }
    }

    /// A record that is met again while it is being compared agrees, as far as this place goes.
    fn once(
        &mut self,
        offered: NodeIndex,
        asked: NodeIndex,
        compare: impl FnOnce(&mut Self) -> Result<(), Misfit<'t>>,
    ) -> Result<(), Misfit<'t>> {
        if self.verdicts.get(&(offered, asked)) == Some(&true) {
            return Ok(());
        }
        self.verdicts.insert((offered, asked), true);
        let verdict = compare(self);
        self.verdicts.insert((offered, asked), verdict.is_ok());
        verdict
    }

    /// One pair of alternatives is enough. The error is the misfit of the only real pair, if there is just one.
    fn unions(
        &mut self,
        offered: NodeIndex,
        asked: NodeIndex,
        depth: usize,
    ) -> Result<(), Option<Misfit<'t>>> {
        let (lefts, rights) =
            (alternatives(&self.offered.nodes, offered), alternatives(&self.asked.nodes, asked));
        let mut misfits = Vec::new();
        for &left in &lefts {
            for &right in &rights {
                match self.nodes(left, right, depth + 1) {
                    Ok(()) => return Ok(()),
                    Err(misfit) => {
                        let real = !is_none(&self.offered.nodes, left) && !is_none(&self.asked.nodes, right);
                        if real && misfits.len() < 2 {
                            misfits.push(misfit);
                        }
                    }
                }
            }
        }
        Err(if misfits.len() == 1 { misfits.pop() } else { None })
    }

    /// What is asked for must be there, or be allowed to be missing; what else is offered is ignored.
    fn records(
        &mut self,
        offered: &[Field<'t>],
        asked: &[Field<'t>],
        depth: usize,
    ) -> Result<(), Misfit<'t>> {
        let by_name: HashMap<&str, &Field<'t>> = offered.iter().map(|field| (field.name, field)).collect();
        for wanted in asked {
            match by_name.get(wanted.name) {
                Some(field) => self
                    .nodes(field.shape, wanted.shape, depth + 1)
                    .map_err(|misfit| misfit.within(wanted.name))?,
                None if wanted.may_be_missing => {}
                None => {
                    let asked = self.asked.nodes[wanted.shape].text;
                    return Err(Misfit { path: vec![wanted.name], offered: MISSING, asked });
                }
            }
        }
        Ok(())
    }

    /// Places are compared in order, with their names; only a tail that may be missing can be missing.
    fn rows(&mut self, offered: &[Field<'t>], asked: &[Field<'t>], depth: usize) -> Result<(), Misfit<'t>> {
        for (place, wanted) in asked.iter().enumerate() {
            let asked_text = self.asked.nodes[wanted.shape].text;
            match offered.get(place) {
                Some(field) if field.name == wanted.name => self
                    .nodes(field.shape, wanted.shape, depth + 1)
                    .map_err(|misfit| misfit.within(wanted.name))?,
                Some(field) => {
                    return Err(Misfit { path: vec![wanted.name], offered: field.name, asked: wanted.name });
                }
                None if wanted.may_be_missing => {}
                None => return Err(Misfit { path: vec![wanted.name], offered: MISSING, asked: asked_text }),
            }
        }
        match offered.get(asked.len()) {
            Some(more) if !more.may_be_missing => {
                let offered = self.offered.nodes[more.shape].text;
                Err(Misfit { path: vec![more.name], offered, asked: MISSING })
            }
            _ => Ok(()),
        }
    }
}

/// How a disagreement names a field that one side does not have.
const MISSING: &str = "missing";

impl<'t> Misfit<'t> {
    fn within(mut self, name: &'t str) -> Self {
        self.path.push(name);
        self
    }
}

fn alternatives(nodes: &[Node<'_>], index: NodeIndex) -> Vec<NodeIndex> {
    match &nodes[index].kind {
        Kind::Union(items) => items.clone(),
        _ => vec![index],
    }
}

fn is_none(nodes: &[Node<'_>], index: NodeIndex) -> bool {
    matches!(nodes[index].kind, Kind::Atom("none"))
}

/// Whether the keys of a map can be field names.
fn keys_may_be_names(nodes: &[Node<'_>], key: NodeIndex) -> bool {
    alternatives(nodes, key).iter().any(|&index| match nodes[index].kind {
        Kind::Any | Kind::Atom("str") => true,
        Kind::Literal(value) => literal_is(value, "str"),
        _ => false,
    })
}

fn can_be_of_length(fields: &[Field<'_>], len: usize) -> bool {
    let needed = fields.iter().filter(|field| !field.may_be_missing).count();
    (needed..=fields.len()).contains(&len)
}

fn literal_is(value: &str, word: &str) -> bool {
    match value.as_bytes() {
        [b'\'', ..] => word == "str",
        b"true" | b"false" => word == "bool",
        digits if digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-') => {
            matches!(word, "int" | "float")
        }
        _ => word == "float",
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agrees(offered: &str, asked: &str) -> bool {
        agree(offered, asked).is_ok()
    }

    fn parting(offered: &str, asked: &str) -> (String, String, String) {
        let parting = agree(offered, asked).expect_err("these must not agree");
        (parting.field, parting.offered, parting.asked)
    }

    fn words(field: &str, offered: &str, asked: &str) -> (String, String, String) {
        (field.to_owned(), offered.to_owned(), asked.to_owned())
    }

    #[test]
    fn no_type_agrees_with_everything() {
        assert!(agrees("", "int") && agrees("{a:int}", "") && agrees("", "") && agrees("any", "list<uuid>"));
    }

    #[test]
    fn int_serves_for_float_but_not_for_str() {
        assert!(agrees("int", "float"));
        assert_eq!(parting("int", "str"), words("type", "int", "str"));
        assert!(!agrees("bool", "int") && !agrees("uuid", "str") && !agrees("none", "int"));
    }

    #[test]
    fn one_common_alternative_is_enough() {
        assert!(agrees("int|none", "int") && agrees("str", "int|str") && agrees("int|none", "str|none"));
        assert_eq!(parting("int|bool", "str|bytes"), words("type", "int|bool", "str|bytes"));
    }

    #[test]
    fn missing_field_needs_a_default_and_unknown_fields_are_ignored() {
        assert!(agrees("{a:int,b:str}", "{a:float}"));
        assert!(agrees("{a:int}", "{a:int,b?:str}"));
        assert_eq!(parting("{a:int}", "{a:int,b:str}"), words("b", "missing", "str"));
        assert!(!agrees("{a:int,b:int}", "{a:int,b?:str}"));
    }

    #[test]
    fn the_first_disagreement_is_named_by_its_dotted_field() {
        let offered = "{pose:{x:float,y:float},boxes:list<{label:str}>}";
        assert_eq!(parting(offered, "{pose:{x:float,y:str}}"), words("pose.y", "float", "str"));
        assert_eq!(parting(offered, "{boxes:list<{label:int}>}"), words("boxes.label", "str", "int"));
        assert_eq!(parting("{a:{b:int}|none}", "{a:{b:str}}"), words("a.b", "int", "str"));
    }

    #[test]
    fn tuples_are_lists_and_records_are_maps() {
        assert!(agrees("tuple<int,int>", "list<float>") && agrees("list<int>", "tuple<int,int>"));
        assert!(!agrees("tuple<int,int>", "tuple<int>") && !agrees("list<int>", "list<str>"));
        assert!(agrees("dict<str,int>", "{a:int,b?:str}") && agrees("{a:int}", "dict<str,any>"));
        assert!(!agrees("dict<int,int>", "{a:int}") && !agrees("dict<str,int>", "dict<str,str>"));
        assert!(agrees("{}", "dict<str,int>") && agrees("tuple<>", "list<int>"));
    }

    #[test]
    fn rows_agree_place_by_place() {
        assert!(agrees("(x:int,y:int)", "(x:float,y:float)") && agrees("(x:int)", "(x:int,y?:int)"));
        assert!(agrees("(x:int,y:int)", "list<int>") && agrees("tuple<int,int>", "(x:int,y:int,z?:int)"));
        assert_eq!(parting("(x:int,y:int)", "(x:int)"), words("y", "int", "missing"));
        assert_eq!(parting("(x:int,y:int)", "(y:int,x:int)"), words("y", "x", "y"));
        assert!(!agrees("(x:int)", "{x:int}"));
    }

    #[test]
    fn literals_are_values_of_their_type() {
        assert!(agrees("='cat'|='dog'", "str") && agrees("int", "=5|=6") && agrees("=5", "float"));
        assert!(
            agrees("='cat'|='dog'", "='dog'|='cow'") && agrees("=true", "bool") && agrees("=1.5", "float")
        );
        assert!(!agrees("='cat'", "='dog'") && !agrees("='5'", "int") && !agrees("=5", "bool"));
    }

    #[test]
    fn arrays_and_codecs_compare_by_name() {
        assert!(agrees("ndarray<f4>", "ndarray") && agrees("ndarray<f4>", "ndarray<f4>"));
        assert!(!agrees("ndarray<f4>", "ndarray<f8>") && !agrees("ndarray", "bytes"));
        assert!(agrees("codec<cbor>", "codec<cbor>") && !agrees("codec<cbor>", "codec<png>"));
    }

    #[test]
    fn recursive_types_are_compared_to_the_end() {
        let tree = "{value:int,children:list<^0>}";
        assert!(agrees(tree, tree) && agrees(tree, "{children:list<^0>,value:float}"));
        assert!(agrees(tree, "{value:int,children:list<{value:int,children:list<^1>}>}"));
        assert_eq!(
            parting(tree, "{value:int,children:list<{value:str}>}"),
            words("children.value", "int", "str")
        );
    }

    #[test]
    fn cycles_of_different_length_neither_hang_nor_overflow() {
        let cycle = |len: usize| {
            format!("{}{}{}", "{a:".repeat(len - 1), format_args!("{{a:^{}}}", len - 1), "}".repeat(len - 1))
        };
        assert!(agrees(&cycle(61), &cycle(64)));
    }

    #[test]
    fn what_cannot_be_read_agrees_with_no_type() {
        let deep = format!("{}int{}", "list<".repeat(65), ">".repeat(65));
        let long = format!("{{{}a:int}}", "a:int,".repeat(20_000));
        for text in [
            "integer",
            "{a:int",
            "list<>",
            "list<int,int>",
            "dict<int>",
            "^0",
            "{a:^1}",
            "=",
            "='",
            "int|",
            "int int",
            "é",
            "{a?int}",
            &deep,
            &long,
        ] {
            assert_eq!(agree(text, "int").expect_err("unreadable").field, "type", "{text}");
            assert!(agree("int", text).is_err(), "{text}");
        }
        assert!(agree(&long, &long).is_err());
    }

    #[test]
    fn a_hostile_union_costs_a_bounded_number_of_steps() {
        let many = |word: &str| vec![format!("{{{word}:int}}"); 5_000].join("|");
        agree(&many("a"), &many("b")).ok();
    }

    #[test]
    fn quotations_are_cut() {
        let wide = format!("{{{}z:int}}", "abc:int,".repeat(1000));
        assert_eq!(agree(&wide, "int").expect_err("apart").offered.chars().count(), MAX_QUOTED_CHARS + 1);
    }

    /// Any well-formed shape without references.
    fn shapes() -> impl Strategy<Value = String> {
        let leaf = prop::sample::select(vec![
            "any",
            "none",
            "bool",
            "int",
            "float",
            "str",
            "bytes",
            "uuid",
            "ndarray",
            "ndarray<f4>",
            "=5",
            "='cat'",
        ])
        .prop_map(str::to_owned);
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                inner.clone().prop_map(|item| format!("list<{item}>")),
                (inner.clone(), inner.clone()).prop_map(|(key, value)| format!("dict<{key},{value}>")),
                prop::collection::vec(inner.clone(), 0..3)
                    .prop_map(|items| format!("tuple<{}>", items.join(","))),
                prop::collection::vec(inner.clone(), 2..4).prop_map(|items| items.join("|")),
                prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|fields| {
                    let fields: Vec<String> =
                        fields.iter().map(|(name, shape)| format!("{name}:{shape}")).collect();
                    format!("{{{}}}", fields.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_shape_agrees_with_itself_with_any_and_in_a_union(shape in shapes()) {
            prop_assert!(Shape::parse(&shape).is_some());
            // A space would make the texts differ, an alternative makes them be compared.
            let asked = format!("{shape}|uuid");
            prop_assert!(agrees(&shape, &asked), "{shape} and {asked}");
            prop_assert!(agrees(&shape, "any"));
        }

        #[test]
        fn hostile_text_never_panics(offered in "[a-c{}<>()|:,?^=' 0-9%]{0,60}", asked in shapes(), noise in ".{0,20}") {
            let _ = (agree(&offered, &asked), agree(&asked, &offered), agree(&noise, &offered));
        }
    }
}
