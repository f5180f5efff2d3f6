//! Expressions: what stands after WHERE, and in the condition of a job.
//!
//! Owns: the value of an expression for a document. Must not know: the text of a query, rows.
//!
//! Source: "Expressions and conditions": only `true` is true; comparisons are between strings, numbers, booleans and
//! null. Choices where the page is silent, as Azure Cosmos DB does it (UNVERIFIED): a comparison with a property that
//! the document does not have, or between different types, is undefined; `NOT` of undefined is undefined; `AND` and `OR`
//! are undefined only if the other side does not decide. So `tags.site <> 'a'` does not find devices without the tag.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::path::PropertyPath;

/// The value of an expression; `None` is undefined.
type Computed<'d> = Option<Cow<'d, Value>>;

/// A function of one argument, which may be undefined.
pub(in crate::emulator) type TypeTest = fn(Option<&Value>) -> bool;

/// A function of two arguments. `None` is undefined.
pub(in crate::emulator) type PairTest = fn(&Value, &Value) -> Option<bool>;

/// An expression. Its nesting has a limit, because the parser has one.
#[derive(Debug, Clone)]
pub(in crate::emulator) enum Expression {
    /// A constant; `None` is `undefined`.
    Constant(Option<Value>),
    Property(PropertyPath),
    Not(Box<Expression>),
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Compare(Box<Expression>, Comparison, Box<Expression>),
    /// Whether the value is one of the constants, or is none of them.
    Among {
        item: Box<Expression>,
        constants: Vec<Value>,
        expected: bool,
    },
    /// A number, and what is done to it.
    Arithmetic(Box<Expression>, Vec<(ArithmeticSign, Expression)>),
    Test(TypeTest, Box<Expression>),
    TestPair(PairTest, Box<Expression>, Box<Expression>),
}

#[derive(Debug, Clone, Copy)]
pub(in crate::emulator) enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Debug, Clone, Copy)]
pub(in crate::emulator) enum ArithmeticSign {
    Plus,
    Minus,
    Times,
    DividedBy,
    Remainder,
}

/// Functions of one argument. The page names the first one for twins and jobs, and all of them for routes.
const TYPE_TESTS: [(&str, TypeTest); 8] = [
    ("IS_DEFINED", |value| value.is_some()),
    ("IS_NULL", |value| value.is_some_and(Value::is_null)),
    ("IS_STRING", |value| value.is_some_and(Value::is_string)),
    ("IS_NUMBER", |value| value.is_some_and(Value::is_number)),
    ("IS_BOOL", |value| value.is_some_and(Value::is_boolean)),
    ("IS_OBJECT", |value| value.is_some_and(Value::is_object)),
    ("IS_ARRAY", |value| value.is_some_and(Value::is_array)),
    ("IS_PRIMITIVE", |value| value.is_some_and(|value| !value.is_object() && !value.is_array())),
];

/// Functions of two arguments. The page names those of strings for routes. `ARRAY_CONTAINS` is what the `az` command line
/// asks for the children of an edge device.
const PAIR_TESTS: [(&str, PairTest); 6] = [
    ("STARTSWITH", |text, part| texts(text, part, |text, part| text.starts_with(part))),
    ("STARTS_WITH", |text, part| texts(text, part, |text, part| text.starts_with(part))),
    ("ENDSWITH", |text, part| texts(text, part, |text, part| text.ends_with(part))),
    ("ENDS_WITH", |text, part| texts(text, part, |text, part| text.ends_with(part))),
    ("CONTAINS", |text, part| texts(text, part, |text, part| text.contains(part))),
    ("ARRAY_CONTAINS", |array, item| {
        let mut items = array.as_array()?.iter();
        Some(items.any(|value| compared(value, item) == Some(Ordering::Equal)))
    }),
];

/// The function of one argument with this name; names ignore case.
pub(super) fn type_test(name: &str) -> Option<TypeTest> {
    TYPE_TESTS.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, test)| *test)
}

/// The function of two arguments with this name; names ignore case.
pub(super) fn pair_test(name: &str) -> Option<PairTest> {
    PAIR_TESTS.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, test)| *test)
}

/// The names of all functions, for a sentence.
pub(super) fn function_names() -> String {
    let names = TYPE_TESTS.iter().map(|(name, _)| *name).chain(PAIR_TESTS.iter().map(|(name, _)| *name));
    names.collect::<Vec<_>>().join(", ")
}

impl Expression {
    /// Whether the condition holds for a document.
    pub(in crate::emulator) fn holds(&self, document: &Value) -> bool {
        self.truth(document) == Some(true)
    }

    /// The value as a condition: every value but `true` is false.
    fn truth(&self, document: &Value) -> Option<bool> {
        self.value(document).map(|value| *value == Value::Bool(true))
    }

    fn value<'d>(&'d self, document: &'d Value) -> Computed<'d> {
        let known = match self {
            Self::Constant(value) => return value.as_ref().map(Cow::Borrowed),
            Self::Property(path) => return path.find(document).map(|(_, value)| Cow::Borrowed(value)),
            Self::Arithmetic(first, rest) => return calculated(first, rest, document),
            Self::Not(inner) => inner.truth(document).map(|value| !value),
            Self::All(parts) => decided_by(false, parts, document),
            Self::Any(parts) => decided_by(true, parts, document),
            Self::Compare(left, sign, right) => {
                let (left, right) = (left.value(document)?, right.value(document)?);
                sign.holds(&left, &right)
            }
            Self::Among { item, constants, expected } => {
                let item = item.value(document)?;
                let found = constants.iter().any(|value| compared(&item, value) == Some(Ordering::Equal));
                Some(found == *expected)
            }
            Self::Test(test, argument) => Some(test(argument.value(document).as_deref())),
            Self::TestPair(test, first, second) => test(&*first.value(document)?, &*second.value(document)?),
        };
        known.map(|known| Cow::Owned(Value::Bool(known)))
    }
}

/// `AND` and `OR`: one part with the deciding value decides. Otherwise, a part that is undefined leaves it undefined.
fn decided_by(decides: bool, parts: &[Expression], document: &Value) -> Option<bool> {
    let mut whole = Some(!decides);
    for part in parts {
        match part.truth(document) {
            Some(value) if value == decides => return Some(decides),
            Some(_) => {}
            None => whole = None,
        }
    }
    whole
}

/// Numbers are calculated as floats. A result that is no number, as after a division by zero, is undefined.
fn calculated<'d>(
    first: &'d Expression,
    rest: &'d [(ArithmeticSign, Expression)],
    document: &'d Value,
) -> Computed<'d> {
    let number = |expression: &'d Expression| expression.value(document)?.as_f64();
    let mut result = number(first)?;
    for (sign, operand) in rest {
        let operand = number(operand)?;
        result = match sign {
            ArithmeticSign::Plus => result + operand,
            ArithmeticSign::Minus => result - operand,
            ArithmeticSign::Times => result * operand,
            ArithmeticSign::DividedBy => result / operand,
            ArithmeticSign::Remainder => result % operand,
        };
    }
    Number::from_f64(result).map(|number| Cow::Owned(Value::Number(number)))
}

impl Comparison {
    /// `None` if the two cannot be compared so: objects and arrays never, and only numbers and strings have an order.
    fn holds(self, left: &Value, right: &Value) -> Option<bool> {
        let order = compared(left, right)?;
        let ordered = left.is_number() || left.is_string();
        match self {
            Self::Equal => Some(order.is_eq()),
            Self::NotEqual => Some(order.is_ne()),
            Self::Less => ordered.then(|| order.is_lt()),
            Self::AtMost => ordered.then(|| order.is_le()),
            Self::Greater => ordered.then(|| order.is_gt()),
            Self::AtLeast => ordered.then(|| order.is_ge()),
        }
    }
}

fn compared(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Null, Value::Null) => Some(Ordering::Equal),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Number(left), Value::Number(right)) => left.as_f64()?.partial_cmp(&right.as_f64()?),
        _ => None,
    }
}

fn texts(text: &Value, part: &Value, test: fn(&str, &str) -> bool) -> Option<bool> {
    Some(test(text.as_str()?, part.as_str()?))
}
