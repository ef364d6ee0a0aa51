//! Floating-point numbers as INCRBYFLOAT reads, adds and writes them.
//!
//! Redis calculates in the `long double` of x86: a sign, 64 bits of mantissa, 15 of exponent. The
//! 11 bits more than a double has are what makes 3.0 + 0.1 come out as 3.1, so they are part of
//! the behaviour, and Rust has no such type: [`Extended`] does the three operations in integers.
//! Each is rounded once, to nearest, ties to even, as the processor does.
//!
//! A number is written with 17 digits after the point, zeros at its end cut, never with an
//! exponent.

/// Longest text that is read as a number, in bytes; Redis's limit.
const MAX_TEXT: usize = 5 * 1024 - 1;
/// Exponent of the lowest bit that a number can have.
const MIN_EXPONENT: i32 = -16_445;
/// Exponent above that of the highest bit.
const MAX_EXPONENT: i32 = 16_384;

/// A finite number: `mantissa * 2^exponent`. The mantissa's highest bit is set, or it is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extended {
    negative: bool,
    mantissa: u64,
    exponent: i32,
}

/// A number read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    Finite(Extended),
    /// Of either sign: nothing can be added to it.
    Infinite,
}

/// Reads a number as C's `strtold` does: decimal or hexadecimal, with or without exponent, or an
/// infinity; but no space around it, and no number too large or too small to be one.
pub(crate) fn parse(text: &[u8]) -> Option<Number> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let (negative, rest) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if rest.eq_ignore_ascii_case(b"inf") || rest.eq_ignore_ascii_case(b"infinity") {
        return Some(Number::Infinite);
    }
    let value = match rest {
        [b'0', b'x' | b'X', digits @ ..] => parse_digits(digits, 16, b'p')?,
        digits => parse_digits(digits, 10, b'e')?,
    };
    Some(Number::Finite(Extended { negative: negative && value.mantissa != 0, ..value }))
}

fn parse_digits(text: &[u8], radix: u32, exponent_mark: u8) -> Option<Extended> {
    let mut digits = Big::default();
    let mut any = false;
    // Digits after the point.
    let mut scale: i64 = 0;
    let mut point = false;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        if byte == b'.' && !point {
            point = true;
        } else if let Some(digit) = char::from(byte).to_digit(radix) {
            any = true;
            digits.mul_add(radix, digit);
            scale += i64::from(point);
        } else {
            break;
        }
        at += 1;
    }
    if !any {
        return None;
    }
    let mut exponent: i64 = 0;
    if let Some(mark) = text.get(at) {
        if mark.to_ascii_lowercase() != exponent_mark {
            return None;
        }
        let (negative, exponent_digits) = match &text[at + 1..] {
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] => (false, digits),
            digits => (false, digits),
        };
        if exponent_digits.is_empty() {
            return None;
        }
        for byte in exponent_digits {
            let digit = char::from(*byte).to_digit(10)?;
            // Far beyond every number already; only the sign counts then.
            exponent = (exponent * 10 + i64::from(digit)).min(1_000_000);
        }
        exponent = if negative { -exponent } else { exponent };
    }
    if digits.is_zero() {
        return Some(Extended { negative: false, mantissa: 0, exponent: 0 });
    }
    if radix == 16 {
        let exponent = i32::try_from(exponent - 4 * scale).ok()?;
        return ratio(digits, Big::from(1), exponent);
    }
    let exponent = exponent - scale;
    // The digits are fewer than 5,120, so this decides without calculating.
    if !(-11_000..=6_000).contains(&exponent) {
        return None;
    }
    let power = Big::power_of_ten(exponent.unsigned_abs() as u32);
    if exponent < 0 {
        ratio(digits, power, 0)
    } else {
        digits = digits.mul(&power);
        ratio(digits, Big::from(1), 0)
    }
}

/// Returns `above / below * 2^exponent`, rounded; `None` if that is too large, or rounds to 0.
fn ratio(mut above: Big, mut below: Big, exponent: i32) -> Option<Extended> {
    // The quotient gets 66 or 67 bits: more than the mantissa, so that rounding sees a rest.
    let shift = 66 - (above.bits() as i32 - below.bits() as i32);
    if shift >= 0 {
        above.shift_left(shift as u32);
    } else {
        below.shift_left(shift.unsigned_abs());
    }
    let mut quotient: u128 = 0;
    below.shift_left(67);
    for _ in 0..68 {
        quotient <<= 1;
        if above.is_at_least(&below) {
            above.subtract(&below);
            quotient |= 1;
        }
        below.shift_right_once();
    }
    round(false, quotient, exponent - shift, !above.is_zero())
        .filter(|rounded| rounded.mantissa != 0)
}

/// Rounds `value * 2^exponent`, plus a little if `rest`, to a number; `None` if it is too large.
fn round(negative: bool, value: u128, exponent: i32, rest: bool) -> Option<Extended> {
    if value == 0 {
        return Some(Extended { negative: false, mantissa: 0, exponent: 0 });
    }
    let bits = 128 - value.leading_zeros() as i32;
    // So many of the lowest bits do not fit: because of the mantissa, or of the lowest exponent.
    let dropped = (bits - 64).max(MIN_EXPONENT - exponent);
    let (mut mantissa, mut exponent) = (value, exponent);
    if dropped > 0 {
        let dropped = dropped.min(127) as u32;
        let lost = mantissa & ((1 << dropped) - 1);
        let half = 1u128 << (dropped - 1);
        mantissa >>= dropped;
        exponent += dropped as i32;
        if lost > half || (lost == half && (rest || mantissa & 1 == 1)) {
            mantissa += 1;
        }
    }
    if mantissa == 0 {
        return Some(Extended { negative: false, mantissa: 0, exponent: 0 });
    }
    if mantissa >> 64 != 0 {
        mantissa >>= 1;
        exponent += 1;
    }
    // Fits by now.
    let mantissa = mantissa as u64;
    if exponent + 64 - mantissa.leading_zeros() as i32 > MAX_EXPONENT {
        return None;
    }
    let shift = mantissa.leading_zeros();
    Some(Extended { negative, mantissa: mantissa << shift, exponent: exponent - shift as i32 })
}

impl Extended {
    /// Adds two numbers; `None` if the sum is infinite.
    pub fn add(self, other: Extended) -> Option<Extended> {
        if self.mantissa == 0 || other.mantissa == 0 {
            return Some(if self.mantissa == 0 { other } else { self });
        }
        let (high, low) = match (self.exponent, self.mantissa) >= (other.exponent, other.mantissa) {
            true => (self, other),
            false => (other, self),
        };
        // One bit of room above for a carry, 63 below for what is shifted out.
        let distance = (high.exponent - low.exponent) as u32;
        let (above, below) = (u128::from(high.mantissa) << 63, u128::from(low.mantissa) << 63);
        let shifted = below.checked_shr(distance).unwrap_or(0);
        let rest = distance >= 128 || shifted << distance != below;
        let sum = match high.negative == low.negative {
            true => above + shifted,
            // What was shifted out is taken away too: down to the next lower one and a rest.
            false => above - shifted - u128::from(rest),
        };
        round(high.negative, sum, high.exponent - 63, rest)
    }

    /// Writes the number.
    pub fn to_text(self) -> String {
        // The number times 10^17, rounded, is the digits without the point.
        let mut digits = Big::from(self.mantissa).mul(&Big::power_of_ten(17));
        if self.exponent >= 0 {
            digits.shift_left(self.exponent as u32);
        } else {
            digits.shift_right_rounding(self.exponent.unsigned_abs());
        }
        let mut text = digits.to_decimal();
        if text.len() < 18 {
            text.insert_str(0, &"0".repeat(18 - text.len()));
        }
        text.insert(text.len() - 17, '.');
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
        if self.negative && text != "0" {
            text.insert(0, '-');
        }
        text
    }
}

/// A natural number of any size: 32-bit digits, the lowest first, no zeros at the top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Big(Vec<u32>);

impl From<u64> for Big {
    fn from(value: u64) -> Big {
        let mut big = Big(vec![value as u32, (value >> 32) as u32]);
        big.trim();
        big
    }
}

impl Big {
    fn power_of_ten(exponent: u32) -> Big {
        let mut power = Big::from(1);
        for _ in 0..exponent / 9 {
            power.mul_add(1_000_000_000, 0);
        }
        power.mul_add(10u32.pow(exponent % 9), 0);
        power
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn bits(&self) -> u32 {
        self.0.last().map_or(0, |top| self.0.len() as u32 * 32 - top.leading_zeros())
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn mul_add(&mut self, factor: u32, summand: u32) {
        let mut carry = u64::from(summand);
        for digit in &mut self.0 {
            carry += u64::from(*digit) * u64::from(factor);
            *digit = carry as u32;
            carry >>= 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    fn mul(&self, other: &Big) -> Big {
        let mut product = vec![0u32; self.0.len() + other.0.len()];
        for (i, a) in self.0.iter().enumerate() {
            let mut carry = 0u64;
            for (j, b) in other.0.iter().enumerate() {
                carry += u64::from(product[i + j]) + u64::from(*a) * u64::from(*b);
                product[i + j] = carry as u32;
                carry >>= 32;
            }
            product[i + other.0.len()] = carry as u32;
        }
        let mut product = Big(product);
        product.trim();
        product
    }

    fn shift_left(&mut self, bits: u32) {
        if self.is_zero() {
            return;
        }
        let small = bits % 32;
        if small > 0 {
            let mut carry = 0;
            for digit in &mut self.0 {
                let shifted = u64::from(*digit) << small | carry;
                *digit = shifted as u32;
                carry = shifted >> 32;
            }
            if carry > 0 {
                self.0.push(carry as u32);
            }
        }
        self.0.splice(0..0, std::iter::repeat_n(0, (bits / 32) as usize));
    }

    fn shift_right_once(&mut self) {
        let mut carry = 0;
        for digit in self.0.iter_mut().rev() {
            let low = *digit & 1;
            *digit = *digit >> 1 | carry << 31;
            carry = low;
        }
        self.trim();
    }

    /// Divides by a power of two and rounds to nearest, ties to even.
    fn shift_right_rounding(&mut self, bits: u32) {
        let bit = |big: &Big, index: u32| {
            big.0.get((index / 32) as usize).is_some_and(|digit| digit >> (index % 32) & 1 == 1)
        };
        if bits > self.bits() {
            self.0.clear();
            return;
        }
        let half = bits > 0 && bit(self, bits - 1);
        let rest = (0..bits.saturating_sub(1)).any(|index| bit(self, index));
        self.0.drain(..((bits / 32) as usize).min(self.0.len()));
        for _ in 0..bits % 32 {
            self.shift_right_once();
        }
        if half && (rest || bit(self, 0)) {
            if self.is_zero() {
                self.0.push(1);
            } else {
                // Adding one through a multiplication by one.
                self.mul_add(1, 1);
            }
        }
    }

    fn is_at_least(&self, other: &Big) -> bool {
        let by_len = self.0.len().cmp(&other.0.len());
        by_len.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev())).is_ge()
    }

    /// Takes away a number that is not larger.
    fn subtract(&mut self, other: &Big) {
        let mut borrow = 0i64;
        for (i, digit) in self.0.iter_mut().enumerate() {
            let difference =
                i64::from(*digit) - i64::from(other.0.get(i).copied().unwrap_or(0)) + borrow;
            *digit = difference as u32;
            borrow = difference >> 32;
        }
        self.trim();
    }

    fn to_decimal(&self) -> String {
        let mut groups = Vec::new();
        let mut rest = self.clone();
        while !rest.is_zero() {
            let mut remainder = 0u64;
            for digit in rest.0.iter_mut().rev() {
                remainder = remainder << 32 | u64::from(*digit);
                *digit = (remainder / 1_000_000_000) as u32;
                remainder %= 1_000_000_000;
            }
            rest.trim();
            groups.push(remainder);
        }
        let mut text = groups.pop().unwrap_or(0).to_string();
        for group in groups.iter().rev() {
            text.push_str(&format!("{group:09}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finite(text: &str) -> Extended {
        match parse(text.as_bytes()) {
            Some(Number::Finite(value)) => value,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn sums_are_those_of_redis() {
        for (a, b, sum) in [
            ("3", "0.1", "3.1"),
            ("0.1", "0.2", "0.3"),
            ("10.5", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("1", "-1", "0"),
            ("-0.1", "0.1", "0"),
            ("1e-20", "0", "0"),
            ("-1e-20", "0", "0"),
            ("0x10", "0x.8", "16.5"),
            ("0x1p-3", "1", "1.125"),
            (".5", "5.", "5.5"),
            ("+7", "-0", "7"),
            ("9223372036854775807", "1", "9223372036854775808"),
            ("18446744073709551615", "1", "18446744073709551616"),
            ("18446744073709551616", "1", "18446744073709551616"),
            ("1e30", "1", "1000000000000000000024696061952"),
            ("0.00000000000000001", "0", "0.00000000000000001"),
            ("0.0000000000000000051", "0", "0.00000000000000001"),
            ("1.17", "0", "1.17"),
            ("123456789.123456789", "0.000000001", "123456789.12345678999554366"),
        ] {
            assert_eq!(finite(a).add(finite(b)).unwrap().to_text(), sum, "{a} + {b}");
            assert_eq!(finite(b).add(finite(a)).unwrap().to_text(), sum, "{b} + {a}");
        }
    }

    #[test]
    fn what_is_no_number_is_not_read() {
        for text in [
            "",
            " 1",
            "1 ",
            "a",
            "1a",
            "1e",
            "1e+",
            "--1",
            "0x",
            "0x1p",
            ".",
            "-",
            "nan",
            "1e5000",
            "1e-5000",
            "1e999999999999999999999",
            "1.2.3",
            "1_0",
            "infi",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(&[b'1'; MAX_TEXT + 1]), None);
        for text in ["inf", "-INF", "+Infinity"] {
            assert_eq!(parse(text.as_bytes()), Some(Number::Infinite));
        }
    }

    #[test]
    fn numbers_reach_as_far_as_redis_reaches() {
        let largest = finite("1.18973149535723176502e+4932");
        assert_eq!(largest.mantissa, u64::MAX);
        assert_eq!(largest.add(largest), None, "infinite");
        assert_eq!(parse(b"1.18973149535723176509e+4932"), None);
        // The smallest one, and what rounds to it and to nothing.
        assert_eq!(finite("3.6451995318824746025e-4951"), finite("0x1p-16445"));
        assert_eq!(finite("0x1.8p-16446"), finite("0x1p-16445"));
        assert_eq!(parse(b"0x1p-16447"), None);
        let long = format!("1{}", "0".repeat(4_900));
        assert_eq!(finite(&long).to_text().len(), 4_901);
    }

    #[test]
    fn ties_go_to_the_even_neighbour() {
        let two_to_64 = finite("18446744073709551616");
        let text = |value: Option<Extended>| value.unwrap().to_text();
        assert_eq!(text(two_to_64.add(finite("1"))), "18446744073709551616");
        assert_eq!(text(two_to_64.add(finite("3"))), "18446744073709551620");
        assert_eq!(text(two_to_64.add(finite("-0.5"))), "18446744073709551616");
        assert_eq!(text(two_to_64.add(finite("-0.75"))), "18446744073709551615");
        assert_eq!(text(two_to_64.add(finite("1e-4940"))), "18446744073709551616");
        assert_eq!(text(two_to_64.add(finite("-1e-4940"))), "18446744073709551616");
    }
}
