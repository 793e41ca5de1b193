"""The reference that restores are held against, tested on lines as both tools print them."""

import unittest

from history import MILLION, History, Note, Transaction, against_notes, parse_set, read
from journal import Row

MARIADB = """\
#261122  9:45:06 server id 7  end_log_pos 328 CRC32 0x3a5f0b1c \tGTID 0-7-12 trans
START TRANSACTION
#261122  9:45:06 server id 7  end_log_pos 500 CRC32 0x1 \tWrite_rows: table id 20 flags: STMT_END_F
### INSERT INTO `app`.`ledger`
### SET
###   @1=5
###   @2=1
###   @3=17
### UPDATE `app`.`other`
### WHERE
###   @1=5
###   @2=1
###   @3=99
### SET
###   @1=5
###   @2=1
###   @3=100
### INSERT INTO `app`.`other`
### SET
###   @1=5
###   @2=1
###   @3=99
COMMIT/*!*/;
#261122  9:45:07 server id 7  end_log_pos 600 CRC32 0x2 \tGTID 0-7-13 ddl
CREATE TABLE x (id INT)
/*!*/;
#261122  9:45:08 server id 7  end_log_pos 700 CRC32 0x3 \tGTID 0-7-14 trans
### INSERT INTO `app`.`ledger`
### SET
###   @1=6
###   @2=1
###   @3=18
""".splitlines()

MYSQL = """\
#261122  9:45:06 server id 7  end_log_pos 300 CRC32 0x9f \tGTID\tlast_committed=0\tsequence_number=1
# original_commit_timestamp=1795340706123456 (2026-11-22 09:45:06.123456 UTC)
# immediate_commit_timestamp=1795340799000000 (2026-11-22 09:46:39.000000 UTC)
SET @@SESSION.GTID_NEXT= '3e11fa47-71ca-11e1-9e33-c80aa9429562:12'/*!*/;
### INSERT INTO `app`.`ledger`
### SET
###   @1=5
###   @2=2
###   @3=4
COMMIT/*!*/;
SET @@SESSION.GTID_NEXT= 'AUTOMATIC' /* added by mysqlbinlog */ /*!*/;
""".splitlines()


class Reading(unittest.TestCase):
    def test_mariadb(self):
        found = list(read(MARIADB))
        begin = 1795340706 * MILLION
        self.assertEqual(
            found,
            [Transaction("0-7-12", begin, [Row(1, 17)]), Transaction("0-7-13", begin + MILLION)],
            "what was cut off is none",
        )

    def test_mysql(self):
        gtid = "3e11fa47-71ca-11e1-9e33-c80aa9429562:12"
        self.assertEqual(list(read(MYSQL)), [Transaction(gtid, 1795340706123456, [Row(2, 4)])])


class Targets(unittest.TestCase):
    def setUp(self):
        times = [10, 20, 15, 40]
        self.history = History(
            Transaction(f"u:{number}", time, [Row(1, number)]) for number, time in enumerate(times, start=1)
        )

    def test_a_time_is_the_longest_prefix_without_anything_later(self):
        for time, count in [(9, 0), (10, 1), (19, 1), (20, 3), (39, 3), (40, 4), (99, 4)]:
            self.assertEqual(self.history.up_to_time(time), count, time)

    def test_rows_tell_which_prefix_they_are(self):
        whole = len(self.history.transactions)
        for count in range(whole + 1):
            rows = list(reversed(self.history.rows(count)))
            found = self.history.prefix_of(rows, 0, whole)
            self.assertEqual(self.history.rows(found), self.history.rows(count))
            self.assertIsNone(self.history.prefix_of([*rows, Row(9, 9)], 0, whole))
            if rows:
                self.assertIsNone(self.history.prefix_of([*rows, rows[0]], 0, whole), "a row twice")
        self.assertIsNone(self.history.prefix_of(self.history.rows(whole), 0, 1), "not within the bounds")
        self.assertIsNone(self.history.prefix_of([], 1, whole), "not within the bounds")

    def test_a_gtid_is_with_it(self):
        self.assertEqual(self.history.rows(self.history.up_to_gtid("u:2")), [Row(1, 1), Row(1, 2)])

    def test_a_backup_is_a_beginning(self):
        self.assertEqual(self.history.base("u:1-3,v:1"), 3)
        with self.assertRaises(ValueError):
            self.history.base("u:1:3")

    def test_a_backup_may_lack_what_has_no_rows(self):
        history = History([Transaction("u:1", 1, [Row(1, 1)]), Transaction("u:2", 2), Transaction("u:3", 3, [Row(1, 2)])])
        self.assertEqual(history.base("u:1:3"), 3)
        self.assertEqual(history.base("u:1"), 1)

    def test_sets_are_read(self):
        self.assertEqual(parse_set("a:1-3:7,\nb:5"), {"a": [(1, 3), (7, 7)], "b": [(5, 5)]})


class Notes(unittest.TestCase):
    def setUp(self):
        self.history = History([Transaction("u:1", 10, [Row(1, 1)]), Transaction("u:2", 20, [Row(2, 1)])])

    def judge(self, *notes: Note) -> list[str]:
        return against_notes(self.history, list(notes), 1)

    def test_what_agrees_is_right(self):
        self.assertEqual(self.judge(Note(1, 1, 1, 9, 11, "u:1"), Note(2, 1, 1, 15, 21, "u:2")), [])

    def test_what_differs_is_told(self):
        for note, word in [
            (Note(1, 1, 2, 9, 11, "u:1"), "is not in the history"),
            (Note(1, 1, 1, 9, 11, "u:2"), "was told"),
            (Note(1, 1, 1, 11, 12, "u:1"), "was committed at 10"),
        ]:
            self.assertIn(word, " ".join(self.judge(note)), word)

    def test_an_order_that_no_client_can_have_seen_is_told(self):
        self.history.transactions.reverse()
        told = self.judge(Note(1, 1, 1, 9, 11, "u:1"), Note(2, 1, 1, 15, 21, "u:2"))
        self.assertIn("acknowledged before it was begun", " ".join(told))


if __name__ == "__main__":
    unittest.main()
