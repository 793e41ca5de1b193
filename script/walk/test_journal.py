"""The ledger's own judgement, tested: a checker that cannot fail proves nothing."""

import tempfile
import unittest
from pathlib import Path

from journal import Difference, Journal, Row, compare


def journal(**acknowledged: list[tuple[float, int]]) -> Journal:
    """A journal from `writer_1=[(second, number), …]`."""
    notes = {int(name.removeprefix("writer_")): entries for name, entries in acknowledged.items()}
    attempted = {writer: max((number for _, number in entries), default=0) for writer, entries in notes.items()}
    return Journal(acknowledged=notes, attempted=attempted)


class Comparing(unittest.TestCase):
    def setUp(self):
        self.journal = journal(writer_1=[(0.0, 1), (0.1, 3)], writer_2=[(0.0, 1)])

    def test_all_there_once_is_right(self):
        found = [Row(1, 1), Row(2, 1), Row(1, 3)]
        self.assertTrue(compare(self.journal, found).is_empty())

    def test_a_row_that_was_tried_and_not_acknowledged_may_be_there(self):
        found = [Row(1, 1), Row(1, 2), Row(2, 1), Row(1, 3)]
        self.assertTrue(compare(self.journal, found).is_empty())

    def test_an_acknowledged_row_that_is_not_there_is_missing(self):
        found = [Row(1, 1), Row(2, 1)]
        self.assertEqual(compare(self.journal, found), Difference([Row(1, 3)], [], []))

    def test_a_row_that_is_there_twice_is_doubled(self):
        found = [Row(1, 1), Row(2, 1), Row(1, 3), Row(1, 1)]
        self.assertEqual(compare(self.journal, found), Difference([], [Row(1, 1)], []))

    def test_a_row_that_nobody_wrote_is_unknown(self):
        found = [Row(1, 1), Row(2, 1), Row(1, 3), Row(1, 4), Row(3, 1)]
        self.assertEqual(compare(self.journal, found), Difference([], [], [Row(1, 4), Row(3, 1)]))


class Gaps(unittest.TestCase):
    def setUp(self):
        self.journal = journal(
            writer_1=[(0.0, 1), (1.0, 2), (1.5, 3), (9.0, 4)],
            writer_2=[(0.5, 1), (2.0, 2), (3.0, 3), (9.0, 4)],
        )

    def test_together_and_alone(self):
        stall = self.journal.stall(0.9, 2.5)
        self.assertAlmostEqual(stall.service, 1.0)
        self.assertAlmostEqual(stall.worst_connection, 7.5)

    def test_a_gap_counts_whole_when_the_window_only_touches_it(self):
        self.assertAlmostEqual(self.journal.stall(4.0, 5.0).service, 6.0)

    def test_silence_up_to_the_end_of_the_window_is_a_gap(self):
        self.assertAlmostEqual(self.journal.stall(8.0, 20.0).service, 11.0)

    def test_silence_before_the_first_write_is_a_gap(self):
        self.assertAlmostEqual(self.journal.stall(-5.0, 0.2).service, 5.0)


class Loading(unittest.TestCase):
    def test_a_line_that_was_cut_off_is_no_acknowledgement(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "writer-3.journal"
            path.write_text("acknowledged\t1.0\t1\nfailed\t2.0\t2\t2013\tLost connection\nacknowledged\t3.0\t3")
            loaded = Journal.load(Path(directory))
        self.assertEqual(loaded.rows(), {Row(3, 1)})
        self.assertEqual(loaded.attempted, {3: 2})
        self.assertEqual([failure.code for failure in loaded.failures], [2013])
        self.assertEqual(loaded.errors_per_connection(0.0, 2.0), {})
        self.assertEqual(loaded.errors_per_connection(2.0, 2.5), {3: 1})


if __name__ == "__main__":
    unittest.main()
