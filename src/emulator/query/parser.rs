//! Makes a query of its text.
//!
//! Owns: the grammar, and what is said about a fault. Must not know: documents.
//!
//! Source: the grammars on the page about the language. A name that is a word of the language stands in `[[…]]`: the hub
//! refuses `tags.group` (MicrosoftDocs/azure-docs issue 17106). Of the aggregates, the emulator has `COUNT()` only.

use serde_json::{Number, Value};

use super::expression::{ArithmeticSign, Comparison, Expression, function_names, pair_test, type_test};
use super::lexer::{QueryError, QueryToken, TokenKind, tokens};
use super::path::PropertyPath;
use super::select::{Collection, GroupColumn, PropertyColumn, Selection, TwinQuery};
use super::{MAX_ITEMS, MAX_NESTING};
use crate::message::excerpt;

/// The words that no name can be.
const RESERVED: [&str; 11] =
    ["SELECT", "FROM", "WHERE", "GROUP", "BY", "AND", "OR", "NOT", "IN", "NIN", "AS"];

/// Aggregates of the hub that this emulator does not have.
const OTHER_AGGREGATES: [&str; 4] = ["AVG", "SUM", "MIN", "MAX"];

const COMPARISONS: [(&str, Comparison); 7] = [
    ("=", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<>", Comparison::NotEqual),
    ("<", Comparison::Less),
    ("<=", Comparison::AtMost),
    (">", Comparison::Greater),
    (">=", Comparison::AtLeast),
];

const SUMS: [(&str, ArithmeticSign); 2] = [("+", ArithmeticSign::Plus), ("-", ArithmeticSign::Minus)];

const PRODUCTS: [(&str, ArithmeticSign); 3] =
    [("*", ArithmeticSign::Times), ("/", ArithmeticSign::DividedBy), ("%", ArithmeticSign::Remainder)];

impl TwinQuery {
    /// Reads a query.
    ///
    /// # Errors
    /// [`QueryError`] names the first fault and its place.
    pub(in crate::emulator) fn parse(text: &str) -> Result<Self, QueryError> {
        let mut parser = Parser::new(text)?;
        let query = parser.query()?;
        parser.end("WHERE, GROUP BY or the end")?;
        Ok(query)
    }
}

impl Expression {
    /// Reads a condition on the twins of devices, such as that of a job. `*` holds for all of them.
    ///
    /// # Errors
    /// [`QueryError`] names the first fault and its place.
    pub(in crate::emulator) fn parse(text: &str) -> Result<Self, QueryError> {
        let mut parser = Parser::new(text)?;
        let condition =
            if parser.takes_sign("*") { Self::Constant(Some(true.into())) } else { parser.expression()? };
        parser.end("AND, OR or the end")?;
        Ok(condition)
    }
}

/// An item after SELECT.
enum Selected {
    Property(PropertyColumn, usize),
    Count { alias: Option<String> },
}

struct Parser<'q> {
    text: &'q str,
    tokens: Vec<QueryToken>,
    next: usize,
    nesting: usize,
    collection: Collection,
}

impl<'q> Parser<'q> {
    fn new(text: &'q str) -> Result<Self, QueryError> {
        Ok(Self { text, tokens: tokens(text)?, next: 0, nesting: 0, collection: Collection::Devices })
    }

    fn query(&mut self) -> Result<TwinQuery, QueryError> {
        self.word("SELECT")?;
        let top = if self.takes_word("TOP") { Some(self.whole_number()?) } else { None };
        let list_at = self.at();
        let list = if self.takes_sign("*") { None } else { Some(self.list(Self::selected)?) };
        self.check_items(list.as_deref(), list_at)?;
        self.word("FROM")?;
        self.collection = self.collection_name()?;
        let condition = if self.takes_word("WHERE") { Some(self.expression()?) } else { None };
        let groups_at = self.at();
        let by = if self.takes_word("GROUP") {
            self.word("BY")?;
            Some(self.list(Self::path)?)
        } else {
            None
        };
        self.check_items(by.as_deref(), groups_at)?;
        if self.collection == Collection::Jobs && (list.is_some() || by.is_some()) {
            return Err(self.fault(list_at, "FROM devices.jobs takes SELECT * only, without GROUP BY"));
        }
        let selection = match (list, by) {
            (None, None) => Selection::Documents,
            (None, Some(_)) => {
                return Err(self.fault(groups_at, "GROUP BY does not go with SELECT *: name the properties"));
            }
            (Some(list), by) => self.selection(list, by)?,
        };
        Ok(TwinQuery { collection: self.collection, top, selection, condition })
    }

    fn check_items<T>(&self, items: Option<&[T]>, at: usize) -> Result<(), QueryError> {
        match items.map_or(0, <[T]>::len) {
            0..=MAX_ITEMS => Ok(()),
            more => {
                Err(self.fault(at, format!("the query names {more} properties here, more than {MAX_ITEMS}")))
            }
        }
    }

    /// Joins the items of SELECT with those of GROUP BY.
    fn selection(&self, list: Vec<Selected>, by: Option<Vec<PropertyPath>>) -> Result<Selection, QueryError> {
        let within = |column: PropertyColumn| PropertyColumn {
            path: column.path.within(self.collection.words()),
            ..column
        };
        let counts = list.iter().any(|item| matches!(item, Selected::Count { .. }));
        let grouped = counts || by.is_some();
        let by = by.unwrap_or_default();
        let (mut columns, mut groups) = (Vec::new(), Vec::new());
        for item in list {
            match item {
                Selected::Count { alias } => groups.push(GroupColumn::Count { alias }),
                Selected::Property(column, _) if !grouped => columns.push(within(column)),
                Selected::Property(column, at) => {
                    let column = within(column);
                    if !by.contains(&column.path) {
                        let path = &column.path;
                        let problem = format!("\"{path}\" must also stand after GROUP BY, or go");
                        return Err(self.fault(at, problem));
                    }
                    groups.push(GroupColumn::Key(column));
                }
            }
        }
        if !grouped {
            return Ok(Selection::Columns(columns));
        }
        groups.extend(by.into_iter().map(GroupColumn::HiddenKey));
        Ok(Selection::Groups(groups))
    }

    fn selected(&mut self) -> Result<Selected, QueryError> {
        let at = self.at();
        let name = match self.tokens.get(self.next..self.next + 2) {
            Some([QueryToken { kind: TokenKind::Word(name), .. }, open])
                if open.kind == TokenKind::Sign("(") =>
            {
                Some(name.clone())
            }
            _ => None,
        };
        let Some(name) = name else {
            let path = self.path()?;
            return Ok(Selected::Property(PropertyColumn { path, alias: self.alias()? }, at));
        };
        if !name.eq_ignore_ascii_case("COUNT") {
            let other = OTHER_AGGREGATES.iter().any(|aggregate| aggregate.eq_ignore_ascii_case(&name));
            let shown = excerpt(&name);
            let problem = if other {
                format!("this emulator has no {shown}(): of the aggregates, it has COUNT() only")
            } else {
                format!("SELECT takes properties and COUNT(), not {shown}()")
            };
            return Err(self.fault(at, problem));
        }
        self.next += 2;
        self.sign(")", "\")\": COUNT() has no argument")?;
        Ok(Selected::Count { alias: self.alias()? })
    }

    fn alias(&mut self) -> Result<Option<String>, QueryError> {
        if self.takes_word("AS") { self.name("a name after AS").map(Some) } else { Ok(None) }
    }

    fn collection_name(&mut self) -> Result<Collection, QueryError> {
        let at = self.at();
        let names = self.names()?;
        let known = [Collection::Devices, Collection::Modules, Collection::Jobs];
        let fits = |collection: &&Collection| {
            let words = collection.words();
            words.len() == names.len()
                && words.iter().zip(&names).all(|(word, name)| word.eq_ignore_ascii_case(name))
        };
        known.iter().find(fits).copied().ok_or_else(|| {
            let shown = excerpt(&names.join("."));
            let problem = format!(
                "expected devices, devices.modules or devices.jobs after FROM, but found \"{shown}\""
            );
            self.fault(at, problem)
        })
    }

    fn expression(&mut self) -> Result<Expression, QueryError> {
        self.deeper(|parser| {
            parser.chain("OR", Expression::Any, |parser| parser.chain("AND", Expression::All, Self::negation))
        })
    }

    /// Parts with the same word between them. A single part stays as it is.
    fn chain(
        &mut self,
        word: &str,
        joined: fn(Vec<Expression>) -> Expression,
        part: impl Fn(&mut Self) -> Result<Expression, QueryError>,
    ) -> Result<Expression, QueryError> {
        let first = part(self)?;
        let mut parts = vec![first];
        while self.takes_word(word) {
            parts.push(part(self)?);
        }
        match parts.pop() {
            Some(only) if parts.is_empty() => Ok(only),
            last => Ok(joined(parts.into_iter().chain(last).collect())),
        }
    }

    fn negation(&mut self) -> Result<Expression, QueryError> {
        if !self.takes_word("NOT") {
            return self.comparison();
        }
        let inner = self.deeper(Self::negation)?;
        Ok(Expression::Not(Box::new(inner)))
    }

    fn comparison(&mut self) -> Result<Expression, QueryError> {
        let left = self.sum()?;
        for (word, expected) in [("IN", true), ("NIN", false)] {
            if self.takes_word(word) {
                let constants = self.array()?;
                return Ok(Expression::Among { item: Box::new(left), constants, expected });
            }
        }
        let Some(sign) = self.takes_one_of(&COMPARISONS) else { return Ok(left) };
        let right = self.sum()?;
        Ok(Expression::Compare(Box::new(left), sign, Box::new(right)))
    }

    fn sum(&mut self) -> Result<Expression, QueryError> {
        self.arithmetic(&SUMS, |parser| parser.arithmetic(&PRODUCTS, Self::operand))
    }

    fn arithmetic(
        &mut self,
        signs: &[(&str, ArithmeticSign)],
        operand: impl Fn(&mut Self) -> Result<Expression, QueryError>,
    ) -> Result<Expression, QueryError> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(sign) = self.takes_one_of(signs) {
            rest.push((sign, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expression::Arithmetic(Box::new(first), rest) })
    }

    fn operand(&mut self) -> Result<Expression, QueryError> {
        if self.takes_sign("(") {
            let inner = self.expression()?;
            self.sign(")", "AND, OR or \")\"")?;
            return Ok(inner);
        }
        if self.takes_sign("-") {
            let number = self.deeper(Self::operand)?;
            let zero = Expression::Constant(Some(0.into()));
            return Ok(Expression::Arithmetic(Box::new(zero), vec![(ArithmeticSign::Minus, number)]));
        }
        if let Some(constant) = self.constant() {
            return Ok(Expression::Constant(constant));
        }
        let at = self.at();
        let names = self.names()?;
        match names.as_slice() {
            [name] if self.takes_sign("(") => self.call(name, at),
            _ => Ok(Expression::Property(PropertyPath::new(names).within(self.collection.words()))),
        }
    }

    /// The rest of a call, after its opening bracket.
    fn call(&mut self, name: &str, at: usize) -> Result<Expression, QueryError> {
        let call = if let Some(test) = type_test(name) {
            Expression::Test(test, Box::new(self.expression()?))
        } else if let Some(test) = pair_test(name) {
            let first = self.expression()?;
            self.sign(",", "\",\" and a second argument")?;
            Expression::TestPair(test, Box::new(first), Box::new(self.expression()?))
        } else {
            let (name, known) = (excerpt(name), function_names());
            let problem = format!("this emulator has no function {name}(): it has {known}");
            return Err(self.fault(at, problem));
        };
        self.sign(")", "\")\" after the arguments")?;
        Ok(call)
    }

    fn array(&mut self) -> Result<Vec<Value>, QueryError> {
        self.sign("[", "\"[\" and constants")?;
        let constants = self.list(|parser| {
            let minus = parser.takes_sign("-");
            let constant = parser.constant();
            let constant = if minus { constant.map(negative) } else { constant };
            constant.flatten().ok_or_else(|| parser.expected("a constant"))
        })?;
        self.sign("]", "\",\" or \"]\"")?;
        Ok(constants)
    }

    /// A constant, if one is next. The inner `None` is `undefined`.
    fn constant(&mut self) -> Option<Option<Value>> {
        let constant = match self.kind() {
            TokenKind::Constant(value) => Some(value.clone()),
            TokenKind::Word(word) if word.eq_ignore_ascii_case("true") => Some(true.into()),
            TokenKind::Word(word) if word.eq_ignore_ascii_case("false") => Some(false.into()),
            TokenKind::Word(word) if word.eq_ignore_ascii_case("null") => Some(Value::Null),
            TokenKind::Word(word) if word.eq_ignore_ascii_case("undefined") => None,
            _ => return None,
        };
        self.next += 1;
        Some(constant)
    }

    fn path(&mut self) -> Result<PropertyPath, QueryError> {
        Ok(PropertyPath::new(self.names()?).within(self.collection.words()))
    }

    /// Names with dots between them.
    fn names(&mut self) -> Result<Vec<String>, QueryError> {
        let mut names = vec![self.name("a property")?];
        while self.takes_sign(".") {
            names.push(self.name("a name after the dot; write [[NAME]] for a name with other characters")?);
        }
        Ok(names)
    }

    fn name(&mut self, expected: &str) -> Result<String, QueryError> {
        let name = match self.kind() {
            TokenKind::Bracketed(name) => name.clone(),
            TokenKind::Word(word) if RESERVED.iter().any(|own| own.eq_ignore_ascii_case(word)) => {
                let word = word.clone();
                let expected = format!("{expected}, or [[{word}]] for a name that is a word of the language");
                return Err(self.expected(&expected));
            }
            TokenKind::Word(word) => word.clone(),
            _ => return Err(self.expected(expected)),
        };
        self.next += 1;
        Ok(name)
    }

    fn whole_number(&mut self) -> Result<usize, QueryError> {
        let number = match self.kind() {
            TokenKind::Constant(value) => value.as_u64().and_then(|number| usize::try_from(number).ok()),
            _ => None,
        };
        let number = number.ok_or_else(|| self.expected("a whole number after TOP"))?;
        self.next += 1;
        Ok(number)
    }

    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, QueryError>) -> Result<Vec<T>, QueryError> {
        let mut items = vec![item(self)?];
        while self.takes_sign(",") {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// Reads something that can contain itself.
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, QueryError>) -> Result<T, QueryError> {
        if self.nesting > MAX_NESTING {
            let problem = format!("the condition is nested more than {MAX_NESTING} levels deep: simplify it");
            return Err(self.fault(self.at(), problem));
        }
        self.nesting += 1;
        let read = inner(self);
        self.nesting -= 1;
        read
    }

    fn kind(&self) -> &TokenKind {
        self.tokens.get(self.next).map_or(&TokenKind::End, |token| &token.kind)
    }

    /// The byte where the next token begins.
    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.text.len(), |token| token.at)
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let takes = matches!(self.kind(), TokenKind::Word(own) if own.eq_ignore_ascii_case(word));
        self.next += usize::from(takes);
        takes
    }

    fn takes_sign(&mut self, sign: &str) -> bool {
        let takes = matches!(self.kind(), TokenKind::Sign(own) if *own == sign);
        self.next += usize::from(takes);
        takes
    }

    fn takes_one_of<T: Copy>(&mut self, signs: &[(&str, T)]) -> Option<T> {
        signs.iter().find(|(sign, _)| self.takes_sign(sign)).map(|(_, meaning)| *meaning)
    }

    fn word(&mut self, word: &str) -> Result<(), QueryError> {
        if self.takes_word(word) { Ok(()) } else { Err(self.expected(word)) }
    }

    fn sign(&mut self, sign: &str, expected: &str) -> Result<(), QueryError> {
        if self.takes_sign(sign) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn end(&self, expected: &str) -> Result<(), QueryError> {
        if *self.kind() == TokenKind::End { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn expected(&self, expected: &str) -> QueryError {
        let found = match self.kind() {
            TokenKind::Word(text) | TokenKind::Bracketed(text) => format!("\"{}\"", excerpt(text)),
            TokenKind::Constant(Value::String(text)) => format!("the string \"{}\"", excerpt(text)),
            TokenKind::Constant(value) => value.to_string(),
            TokenKind::Sign(sign) => format!("\"{sign}\""),
            TokenKind::End => "the end".to_owned(),
        };
        self.fault(self.at(), format!("expected {expected}, but found {found}"))
    }

    fn fault(&self, at: usize, problem: impl Into<String>) -> QueryError {
        QueryError::new(self.text, at, problem)
    }
}

/// The constant with a minus before it; `None` if it is no number.
fn negative(constant: Option<Value>) -> Option<Value> {
    Number::from_f64(-constant?.as_f64()?).map(Value::Number)
}
