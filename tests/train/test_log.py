from sdpl.train.log import write_csv

ROW = {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "val_mAP": 50.0, "unreadable": 0, "seconds": 3.0}


def test_the_csv_is_written_whole(tmp_path):
    write_csv(tmp_path / "log.csv", [ROW])
    write_csv(tmp_path / "log.csv", [ROW, {**ROW, "epoch": 2}])
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines == ["epoch,lr,train_loss,val_mAP,unreadable,seconds", "1,0.1,2.0,50.0,0,3.0", "2,0.1,2.0,50.0,0,3.0"]
