import io.debezium.embedded.Connect;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.RecordChangeEvent;
import io.debezium.engine.format.ChangeEventFormat;
import java.io.StringReader;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.connect.source.SourceRecord;

/** Debezium's embedded engine with a handler that only counts. Its settings come in DEBEZIUM_PROPERTIES; SIGTERM ends it. */
public final class NoOpEngine {
    private static long events;

    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        properties.load(new StringReader(System.getenv("DEBEZIUM_PROPERTIES")));
        DebeziumEngine<RecordChangeEvent<SourceRecord>> engine = DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
                .using(properties)
                .using((success, message, error) -> {
                    System.out.println(success ? "events " + events : message);
                    if (error != null) {
                        error.printStackTrace(System.out);
                    }
                })
                .notifying(NoOpEngine::take)
                .build();
        Thread running = new Thread(engine, "engine");
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(engine, running)));
        running.start();
    }

    private static void take(List<RecordChangeEvent<SourceRecord>> batch,
            DebeziumEngine.RecordCommitter<RecordChangeEvent<SourceRecord>> committer) throws InterruptedException {
        for (RecordChangeEvent<SourceRecord> record : batch) {
            if (record.record().topic().endsWith(".engagement_events")) {
                events++;
            }
            committer.markProcessed(record);
        }
        committer.markBatchFinished();
    }

    private static void close(DebeziumEngine<?> engine, Thread running) {
        try {
            engine.close();
            running.join();
        } catch (Exception error) {
            error.printStackTrace(System.out);
        }
    }
}
